// RUN: qcc opt %s -p fuse_hard_swish | filecheck %s
// x * HardSigmoid(x) and x * clip(x + 3, 0, 6) / 6 are HardSwish; with another alpha, or another x, they are not.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<4xf32> {onnx.name = "x"}, %z: tensor<4xf32> {onnx.name = "z"}) -> (tensor<4xf32> {onnx.name = "gated"}, tensor<4xf32> {onnx.name = "divided"}, tensor<4xf32> {onnx.name = "steeper"}, tensor<4xf32> {onnx.name = "apart"}) {
    %zero = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "0">} : tensor<f32>
    %three = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "3">} : tensor<f32>
    %six = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "6">} : tensor<f32>
    %g = onnx.HardSigmoid(%x) {alpha = 0.16666667 : f32} : tensor<4xf32>
    %gated = onnx.Mul "gated"(%g, %x) : tensor<4xf32>
    %a = onnx.Add(%x, %three) : tensor<4xf32>
    %c = onnx.Clip(%a, %zero, %six) : tensor<4xf32>
    %p = onnx.Mul(%x, %c) : tensor<4xf32>
    %divided = onnx.Div "divided"(%p, %six) : tensor<4xf32>
    %h = onnx.HardSigmoid(%x) {alpha = 0.2 : f32} : tensor<4xf32>
    %steeper = onnx.Mul "steeper"(%x, %h) : tensor<4xf32>
    %apart = onnx.Mul "of two values"(%z, %g) : tensor<4xf32>
    func.return %gated, %divided, %steeper, %apart : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %g = onnx.HardSigmoid(%x) {alpha = 0.166666672 : f32} : tensor<4xf32>
// CHECK-NEXT: %gated = onnx.HardSwish "gated"(%x) : tensor<4xf32>
// CHECK-NEXT: %divided = onnx.HardSwish "divided"(%x) : tensor<4xf32>
// CHECK-NEXT: %h = onnx.HardSigmoid(%x) {alpha = 2.000000e-01 : f32} : tensor<4xf32>
// CHECK-NEXT: %steeper = onnx.Mul "steeper"(%x, %h) : tensor<4xf32>
// CHECK-NEXT: %apart = onnx.Mul "of two values"(%z, %g) : tensor<4xf32>
// CHECK-NEXT: func.return %gated, %divided, %steeper, %apart
