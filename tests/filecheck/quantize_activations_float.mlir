// RUN: qcc opt %s -p quantize_activations{scheme="W4A16"} | filecheck %s
// A scheme with float activations changes nothing.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<3x32xf32> {onnx.name = "x"}) -> (tensor<3x2xf32> {onnx.name = "y"}) {
    %w = q.weight "w" : !q.tensor<tensor<2x32xf32>, "i4, f32 per 32">
    %y = q.linear(%x, %w) : tensor<3x2xf32>
    func.return %y : tensor<3x2xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %w = q.weight "w" : !q.tensor<tensor<2x32xf32>, "i4, f32 per 32">
// CHECK-NEXT: %y = q.linear(%x, %w) : tensor<3x2xf32>
// CHECK-NEXT: func.return %y
