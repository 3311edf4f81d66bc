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

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %t = onnx.Constant() {value = #onnx.tensor<tensor<4x2xf32>, "1 2 3 4 5 6 7 8">} : tensor<4x2xf32>
// CHECK-NEXT: %0 = q.weight "table.q" : !q.tensor<tensor<4x2xf32>, "i8, f32 per *">
// CHECK-NEXT: %a = q.embedding "table"(%i, %0) : tensor<3x2xf32>
// CHECK-NEXT: %b = onnx.Gather "other"(%t, %i) : tensor<3x2xf32>
// CHECK-NEXT: %c = onnx.Gather "columns"(%t, %i) {axis = 1 : i64} : tensor<4x3xf32>
// CHECK-NEXT: func.return %a, %b, %c
// CHECK: quantized table: table [4, 2] as i8, f32 per *
// CHECK-NEXT: skipped other: embedding: left alone unless --include names it
