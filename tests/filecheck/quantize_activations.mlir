// RUN: qcc opt %s -p quantize_activations{scheme="W8A8_DYNAMIC"} --explain 2>&1 | filecheck %s
// With dynamic scales the operand of linear layers becomes codes, once for all of them; a convolution keeps its floats.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<3x32xf32> {onnx.name = "x"}, %image: tensor<1x2x4x4xf32> {onnx.name = "image"}) -> (tensor<3x2xf32> {onnx.name = "y"}, tensor<3x2xf32> {onnx.name = "z"}, tensor<1x2x4x4xf32> {onnx.name = "map"}) {
    %w = q.weight "w" : !q.tensor<tensor<2x32xf32>, "i8, f32 per *">
    %k = q.weight "k" : !q.tensor<tensor<2x2x1x1xf32>, "i8, f32 per *x*x*">
    %y = q.linear "first"(%x, %w) : tensor<3x2xf32>
    %z = q.linear "second"(%x, %w) : tensor<3x2xf32>
    %map = q.conv "conv"(%image, %k) : tensor<1x2x4x4xf32>
    func.return %y, %z, %map : tensor<3x2xf32>, tensor<3x2xf32>, tensor<1x2x4x4xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %w = q.weight "w" : !q.tensor<tensor<2x32xf32>, "i8, f32 per *">
// CHECK-NEXT: %k = q.weight "k" : !q.tensor<tensor<2x2x1x1xf32>, "i8, f32 per *x*x*">
// CHECK-NEXT: %0 = q.quantize(%x) : !q.tensor<tensor<3x32xf32>, "u8, f32 per tensor, zero u8">
// CHECK-NEXT: %y = q.linear "first"(%0, %w) : tensor<3x2xf32>
// CHECK-NEXT: %z = q.linear "second"(%0, %w) : tensor<3x2xf32>
// CHECK-NEXT: %map = q.conv "conv"(%image, %k) : tensor<1x2x4x4xf32>
// CHECK-NEXT: func.return %y, %z, %map
// CHECK: activations float conv: no integer kernel computes scales of a convolution's input at run time
