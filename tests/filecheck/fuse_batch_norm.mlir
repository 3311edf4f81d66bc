// RUN: qcc opt %s -p fuse_batch_norm --explain 2>&1 | filecheck %s
// A batch norm of constants becomes a multiplication and an addition; one with computed statistics stays.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<1x2x3xf32> {onnx.name = "x"}, %mean: tensor<2xf32> {onnx.name = "mean"}) -> (tensor<1x2x3xf32> {onnx.name = "y"}, tensor<1x2x3xf32> {onnx.name = "z"}) {
    %c = onnx.Constant() {value = #onnx.tensor<tensor<2xf32>, "1 2">} : tensor<2xf32>
    %y = onnx.BatchNormalization "of constants"(%x, %c, %c, %c, %c) : tensor<1x2x3xf32>
    %z = onnx.BatchNormalization "of a computed mean"(%x, %c, %c, %mean, %c) : tensor<1x2x3xf32>
    func.return %y, %z : tensor<1x2x3xf32>, tensor<1x2x3xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %c = onnx.Constant() {value = #onnx.tensor<tensor<2xf32>, "1 2">} : tensor<2xf32>
// CHECK-NEXT: %0 = q.weight "of constants.scale" : tensor<2x1xf32>
// CHECK-NEXT: %1 = onnx.Mul "of constants.scale"(%x, %0) : tensor<1x2x3xf32>
// CHECK-NEXT: %2 = q.weight "of constants.shift" : tensor<2x1xf32>
// CHECK-NEXT: %y = onnx.Add "of constants.shift"(%1, %2) : tensor<1x2x3xf32>
// CHECK-NEXT: %z = onnx.BatchNormalization "of a computed mean"(%x, %c, %c, %mean, %c) : tensor<1x2x3xf32>
// CHECK-NEXT: func.return %y, %z
// CHECK: fuse_batch_norm declined of a computed mean: its statistics are not constant
