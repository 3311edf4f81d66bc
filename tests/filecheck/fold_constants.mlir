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

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %root = onnx.Constant() {value = #onnx.tensor<tensor<2xf32>, "4.0 16.0">} : tensor<2xf32>
// CHECK-NEXT: %y = onnx.Add "reads x"(%x, %root) : tensor<2xf32>
// CHECK-NEXT: %shape = onnx.Constant() {value = #onnx.tensor<tensor<1xi64>, "100">} : tensor<1xi64>
// CHECK-NEXT: %large = onnx.ConstantOfShape "a hundred zeros"(%shape) : tensor<100xf32>
// CHECK-NEXT: func.return %y, %large
// CHECK: fold_constants declined a hundred zeros: the result has 400 bytes, its operands 8
