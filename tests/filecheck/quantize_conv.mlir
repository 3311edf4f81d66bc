// RUN: qcc opt %s -p quantize_conv{scheme="W8A8" ignore="left alone"} --explain 2>&1 | filecheck %s
// Constant weights get a scale an output channel, in transposed convolutions too; computed and ignored ones stay float.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<1x2x4x4xf32> {onnx.name = "x"}, %k: tensor<2x2x1x1xf32> {onnx.name = "k"}) -> (tensor<1x2x2x2xf32> {onnx.name = "a"}, tensor<1x3x4x4xf32> {onnx.name = "b"}, tensor<1x2x4x4xf32> {onnx.name = "c"}, tensor<1x2x4x4xf32> {onnx.name = "d"}) {
    %w = onnx.Constant() {value = #onnx.tensor<tensor<2x2x1x1xf32>, "1 2 3 4">} : tensor<2x2x1x1xf32>
    %v = onnx.Constant() {value = #onnx.tensor<tensor<2x3x1x1xf32>, "1 2 3 4 5 6">} : tensor<2x3x1x1xf32>
    %a = onnx.Conv "conv"(%x, %w) {strides = array<i64: 2, 2>} : tensor<1x2x2x2xf32>
    %b = onnx.ConvTranspose "transposed"(%x, %v) : tensor<1x3x4x4xf32>
    %c = onnx.Conv "computed"(%x, %k) : tensor<1x2x4x4xf32>
    %d = onnx.Conv "left alone"(%x, %w) : tensor<1x2x4x4xf32>
    func.return %a, %b, %c, %d : tensor<1x2x2x2xf32>, tensor<1x3x4x4xf32>, tensor<1x2x4x4xf32>, tensor<1x2x4x4xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %w = onnx.Constant() {value = #onnx.tensor<tensor<2x2x1x1xf32>, "1 2 3 4">} : tensor<2x2x1x1xf32>
// CHECK-NEXT: %0 = q.weight "conv.q" : !q.tensor<tensor<2x2x1x1xf32>, "i8, f32 per *x*x*">
// CHECK-NEXT: %a = q.conv "conv"(%x, %0) {strides = array<i64: 2, 2>} : tensor<1x2x2x2xf32>
// CHECK-NEXT: %1 = q.weight "transposed.q" : !q.tensor<tensor<2x3x1x1xf32>, "i8, f32 per *x1x*x*">
// CHECK-NEXT: %b = q.conv "transposed"(%x, %1) {transposed = 1 : i64} : tensor<1x3x4x4xf32>
// CHECK-NEXT: %c = onnx.Conv "computed"(%x, %k) : tensor<1x2x4x4xf32>
// CHECK-NEXT: %d = onnx.Conv "left alone"(%x, %w) : tensor<1x2x4x4xf32>
// CHECK-NEXT: func.return %a, %b, %c, %d
// CHECK: quantized conv: weight [2, 2, 1, 1] as i8, f32 per *x*x*
// CHECK-NEXT: quantized transposed: weight [2, 3, 1, 1] as i8, f32 per *x1x*x*
// CHECK-NEXT: skipped computed: the weight is computed
// CHECK-NEXT: skipped left alone: ignored by 'left alone'
