// RUN: qcc opt %s -p fold_constants{grow=64} --explain 2>&1 | filecheck %s
// What depends on constants alone is computed, unless it would make the model larger; what reads an input stays.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<2xf32> {onnx.name = "x"}) -> (tensor<2xf32> {onnx.name = "y"}, tensor<100xf32> {onnx.name = "large"}) {
    %one = onnx.Constant() {value = #onnx.tensor<tensor<2xf32>, "1 2">} : tensor<2xf32>
    %two = onnx.Add "one and one"(%one, %one) : tensor<2xf32>
    %root = onnx.Mul "squared"(%two, %two) : tensor<2xf32>
    %y = onnx.Add "reads x"(%x, %root) : tensor<2xf32>
    %shape = onnx.Constant() {value = #onnx.tensor<tensor<1xi64>, "100">} : tensor<1xi64>
    %large = onnx.ConstantOfShape "a hundred zeros"(%shape) : tensor<100xf32>
    func.return %y, %large : tensor<2xf32>, tensor<100xf32>
  }
}
