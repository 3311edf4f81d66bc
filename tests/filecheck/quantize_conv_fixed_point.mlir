// RUN: qcc opt %s -p quantize_conv{scheme="XINT8"} --explain 2>&1 | filecheck %s
// In fixed point a weight has one power of two as its scale, and a convolution that the form lacks stays float.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<1x1x4x4xf32> {onnx.name = "x"}, %v: tensor<1x1x4x4x4xf32> {onnx.name = "v"}, %b: tensor<1xf32> {onnx.name = "b"}) -> (tensor<1x1x4x4xf32> {onnx.name = "y"}, tensor<1x1x4x4x4xf32> {onnx.name = "z"}, tensor<1x1x4x4xf32> {onnx.name = "c"}) {
    %w = onnx.Constant() {value = #onnx.tensor<tensor<1x1x1x1xf32>, "1">} : tensor<1x1x1x1xf32>
    %u = onnx.Constant() {value = #onnx.tensor<tensor<1x1x1x1x1xf32>, "1">} : tensor<1x1x1x1x1xf32>
    %y = onnx.Conv "plane"(%x, %w) : tensor<1x1x4x4xf32>
    %z = onnx.Conv "space"(%v, %u) : tensor<1x1x4x4x4xf32>
    %c = onnx.Conv "bias"(%x, %w, %b) : tensor<1x1x4x4xf32>
    func.return %y, %z, %c : tensor<1x1x4x4xf32>, tensor<1x1x4x4x4xf32>, tensor<1x1x4x4xf32>
  }
}

// CHECK: %0 = q.weight "plane.q" : !q.tensor<tensor<1x1x1x1xf32>, "i8, e8m0 per tensor">
// CHECK-NEXT: %y = q.conv "plane"(%x, %0) : tensor<1x1x4x4xf32>
// CHECK-NEXT: %z = onnx.Conv "space"(%v, %u) : tensor<1x1x4x4x4xf32>
// CHECK-NEXT: %c = onnx.Conv "bias"(%x, %w, %b) : tensor<1x1x4x4xf32>
// CHECK: quantized plane: weight [1, 1, 1, 1] as i8, e8m0 per tensor
// CHECK-NEXT: skipped space: it convolves over 3 axes: the form has one or two
// CHECK-NEXT: skipped bias: its bias is computed
