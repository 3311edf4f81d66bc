// RUN: qcc opt %s -p quantize_embedding{scheme="W8A8_DYNAMIC" include="table"} --explain 2>&1 | filecheck %s
// A table that is named is quantized by rows; one that is not, or that is read along another axis, stays.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%i: tensor<3xi64> {onnx.name = "i"}) -> (tensor<3x2xf32> {onnx.name = "a"}, tensor<3x2xf32> {onnx.name = "b"}, tensor<4x3xf32> {onnx.name = "c"}) {
    %t = onnx.Constant() {value = #onnx.tensor<tensor<4x2xf32>, "1 2 3 4 5 6 7 8">} : tensor<4x2xf32>
    %a = onnx.Gather "table"(%t, %i) : tensor<3x2xf32>
    %b = onnx.Gather "other"(%t, %i) : tensor<3x2xf32>
    %c = onnx.Gather "columns"(%t, %i) {axis = 1 : i64} : tensor<4x3xf32>
    func.return %a, %b, %c : tensor<3x2xf32>, tensor<3x2xf32>, tensor<4x3xf32>
  }
}
