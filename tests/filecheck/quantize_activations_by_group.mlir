// RUN: qcc opt %s -p quantize_activations{scheme="W4A8" group_size=16} | filecheck %s
// Where weights have groups, activations have scales by the same groups.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<3x32xf32> {onnx.name = "x"}) -> (tensor<3x2xf32> {onnx.name = "y"}) {
    %w = q.weight "w" : !q.tensor<tensor<2x32xf32>, "i4, f32 per 16">
    %y = q.linear(%x, %w) : tensor<3x2xf32>
    func.return %y : tensor<3x2xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %w = q.weight "w" : !q.tensor<tensor<2x32xf32>, "i4, f32 per 16">
// CHECK-NEXT: %0 = q.quantize(%x) : !q.tensor<tensor<3x32xf32>, "i8, f32 per 16">
// CHECK-NEXT: %y = q.linear(%0, %w) : tensor<3x2xf32>
// CHECK-NEXT: func.return %y
