// RUN: qcc opt %s -p fuse_hard_sigmoid | filecheck %s
// clip(x + 3, 0, 6) / 6 is HardSigmoid; with a clip at 5 it is not.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<4xf32> {onnx.name = "x"}) -> (tensor<4xf32> {onnx.name = "divided"}, tensor<4xf32> {onnx.name = "multiplied"}, tensor<4xf32> {onnx.name = "other"}) {
    %zero = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "0">} : tensor<f32>
    %three = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "3">} : tensor<f32>
    %five = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "5">} : tensor<f32>
    %six = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "6">} : tensor<f32>
    %sixth = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "0.16666667">} : tensor<f32>
    %a = onnx.Add(%x, %three) : tensor<4xf32>
    %c = onnx.Clip(%a, %zero, %six) : tensor<4xf32>
    %divided = onnx.Div "divided"(%c, %six) : tensor<4xf32>
    %multiplied = onnx.Mul "multiplied"(%sixth, %c) : tensor<4xf32>
    %d = onnx.Clip(%a, %zero, %five) : tensor<4xf32>
    %other = onnx.Div "clipped at five"(%d, %six) : tensor<4xf32>
    func.return %divided, %multiplied, %other : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %zero = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "0">} : tensor<f32>
// CHECK-NEXT: %three = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "3">} : tensor<f32>
// CHECK-NEXT: %five = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "5">} : tensor<f32>
// CHECK-NEXT: %six = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "6">} : tensor<f32>
// CHECK-NEXT: %a = onnx.Add(%x, %three) : tensor<4xf32>
// CHECK-NEXT: %divided = onnx.HardSigmoid "divided"(%x) {alpha = 0.166666672 : f32, beta = 5.000000e-01 : f32} : tensor<4xf32>
// CHECK-NEXT: %multiplied = onnx.HardSigmoid "multiplied"(%x) {alpha = 0.166666672 : f32, beta = 5.000000e-01 : f32} : tensor<4xf32>
// CHECK-NEXT: %d = onnx.Clip(%a, %zero, %five) : tensor<4xf32>
// CHECK-NEXT: %other = onnx.Div "clipped at five"(%d, %six) : tensor<4xf32>
// CHECK-NEXT: func.return %divided, %multiplied, %other
