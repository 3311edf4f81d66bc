// RUN: qcc opt %s -p equalize_layers --explain 2>&1 | filecheck %s
// A convolution whose result one other convolution reads, through a Relu, shares out its channels' ranges: 2 and 1/2 in
// the example meet at 1. What a Sigmoid reads stays.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<1x1x2x2xf32> {onnx.name = "x"}) -> (tensor<1x1x2x2xf32> {onnx.name = "y"}, tensor<1x1x2x2xf32> {onnx.name = "z"}) {
    %w = onnx.Constant() {value = #onnx.tensor<tensor<1x1x1x1xf32>, "2">} : tensor<1x1x1x1xf32>
    %v = onnx.Constant() {value = #onnx.tensor<tensor<1x1x1x1xf32>, "0.5">} : tensor<1x1x1x1xf32>
    %a = onnx.Conv "first"(%x, %w) : tensor<1x1x2x2xf32>
    %r = onnx.Relu(%a) : tensor<1x1x2x2xf32>
    %y = onnx.Conv "second"(%r, %v) : tensor<1x1x2x2xf32>
    %c = onnx.Conv "before a curve"(%x, %w) : tensor<1x1x2x2xf32>
    %s = onnx.Sigmoid(%c) : tensor<1x1x2x2xf32>
    %z = onnx.Conv "behind a curve"(%s, %v) : tensor<1x1x2x2xf32>
    func.return %y, %z : tensor<1x1x2x2xf32>, tensor<1x1x2x2xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK: %0 = q.weight "first.1.equalized" : tensor<1x1x1x1xf32>
// CHECK-NEXT: %a = onnx.Conv "first"(%x, %0) : tensor<1x1x2x2xf32>
// CHECK-NEXT: %r = onnx.Relu(%a) : tensor<1x1x2x2xf32>
// CHECK-NEXT: %1 = q.weight "second.1.equalized" : tensor<1x1x1x1xf32>
// CHECK-NEXT: %y = onnx.Conv "second"(%r, %1) : tensor<1x1x2x2xf32>
// CHECK-NEXT: %c = onnx.Conv "before a curve"(%x, %w) : tensor<1x1x2x2xf32>
// CHECK-NEXT: %s = onnx.Sigmoid(%c) : tensor<1x1x2x2xf32>
// CHECK-NEXT: %z = onnx.Conv "behind a curve"(%s, %v) : tensor<1x1x2x2xf32>
// CHECK-NEXT: func.return %y, %z
// CHECK: equalized first: its channels against those of second
