// RUN: qcc opt %s -p fold_affine --explain 2>&1 | filecheck %s
// A multiplication goes into the convolution above it, an addition into the one below where nothing is padded.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<1x2x4x4xf32> {onnx.name = "x"}) -> (tensor<1x2x4x4xf32> {onnx.name = "above"}, tensor<1x2x4x4xf32> {onnx.name = "below"}, tensor<1x2x4x4xf32> {onnx.name = "padded"}, tensor<1x2x4x4xf32> {onnx.name = "elsewhere"}) {
    %w = onnx.Constant() {value = #onnx.tensor<tensor<2x2x1x1xf32>, "1 2 3 4">} : tensor<2x2x1x1xf32>
    %channels = onnx.Constant() {value = #onnx.tensor<tensor<2x1x1xf32>, "10 100">} : tensor<2x1x1xf32>
    %columns = onnx.Constant() {value = #onnx.tensor<tensor<4xf32>, "1 2 3 4">} : tensor<4xf32>
    %c = onnx.Conv "conv above"(%x, %w) : tensor<1x2x4x4xf32>
    %above = onnx.Mul "scale"(%c, %channels) : tensor<1x2x4x4xf32>
    %s = onnx.Add "shift"(%x, %channels) : tensor<1x2x4x4xf32>
    %below = onnx.Conv "conv below"(%s, %w) : tensor<1x2x4x4xf32>
    %t = onnx.Add "shift before padding"(%x, %channels) : tensor<1x2x4x4xf32>
    %w3 = onnx.Constant() {value = #onnx.tensor<tensor<2x2x1x3xf32>, "1 2 3 4 5 6 7 8 9 10 11 12">} : tensor<2x2x1x3xf32>
    %padded = onnx.Conv "pads"(%t, %w3) {pads = array<i64: 0, 1, 0, 1>} : tensor<1x2x4x4xf32>
    %d = onnx.Conv "conv"(%x, %w) : tensor<1x2x4x4xf32>
    %elsewhere = onnx.Mul "along another axis"(%d, %columns) : tensor<1x2x4x4xf32>
    func.return %above, %below, %padded, %elsewhere : tensor<1x2x4x4xf32>, tensor<1x2x4x4xf32>, tensor<1x2x4x4xf32>, tensor<1x2x4x4xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %w = onnx.Constant() {value = #onnx.tensor<tensor<2x2x1x1xf32>, "1 2 3 4">} : tensor<2x2x1x1xf32>
// CHECK-NEXT: %channels = onnx.Constant() {value = #onnx.tensor<tensor<2x1x1xf32>, "10 100">} : tensor<2x1x1xf32>
// CHECK-NEXT: %columns = onnx.Constant() {value = #onnx.tensor<tensor<4xf32>, "1 2 3 4">} : tensor<4xf32>
// CHECK-NEXT: %0 = q.weight "conv above.weight" : tensor<2x2x1x1xf32>
// CHECK-NEXT: %1 = q.weight "conv above.bias" : tensor<2xf32>
// CHECK-NEXT: %above = onnx.Conv "conv above"(%x, %0, %1) : tensor<1x2x4x4xf32>
// CHECK-NEXT: %2 = q.weight "conv below.weight" : tensor<2x2x1x1xf32>
// CHECK-NEXT: %3 = q.weight "conv below.bias" : tensor<2xf32>
// CHECK-NEXT: %below = onnx.Conv "conv below"(%x, %2, %3) : tensor<1x2x4x4xf32>
// CHECK-NEXT: %t = onnx.Add "shift before padding"(%x, %channels) : tensor<1x2x4x4xf32>
// CHECK-NEXT: %w3 = onnx.Constant() {value = #onnx.tensor<tensor<2x2x1x3xf32>, "1 2 3 4 5 6 7 8 9 10 11 12">} : tensor<2x2x1x3xf32>
// CHECK-NEXT: %padded = onnx.Conv "pads"(%t, %w3) {pads = array<i64: 0, 1, 0, 1>} : tensor<1x2x4x4xf32>
// CHECK-NEXT: %d = onnx.Conv "conv"(%x, %w) : tensor<1x2x4x4xf32>
// CHECK-NEXT: %elsewhere = onnx.Mul "along another axis"(%d, %columns) : tensor<1x2x4x4xf32>
// CHECK-NEXT: func.return %above, %below, %padded, %elsewhere
// CHECK: fold_affine declined shift before padding: the convolution after it pads with zeros, which the addition would not reach
