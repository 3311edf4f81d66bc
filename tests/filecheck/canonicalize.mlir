// RUN: qcc opt %s -p canonicalize --explain 2>&1 | filecheck %s
// Operators that give their first operand are bypassed; the others beside them stay.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<2x3xf32> {onnx.name = "x"}) -> (tensor<2x3xf32> {onnx.name = "same"}, tensor<3x2xf32> {onnx.name = "turned"}, tensor<2x3xf16> {onnx.name = "half"}, tensor<6xf32> {onnx.name = "flat"}, tensor<2x3xf32> {onnx.name = "dropped"}, tensor<2x3xi1> {onnx.name = "mask"}) {
    %a = onnx.Identity "identity"(%x) : tensor<2x3xf32>
    %b = onnx.Dropout "inference"(%a) : tensor<2x3xf32>
    %c = onnx.Cast "to the same type"(%b) {to = 1 : i64} : tensor<2x3xf32>
    %d = onnx.Transpose "into the same order"(%c) {perm = array<i64: 0, 1>} : tensor<2x3xf32>
    %two_by_three = onnx.Constant() {value = #onnx.tensor<tensor<2xi64>, "2 3">} : tensor<2xi64>
    %e = onnx.Reshape "to the same shape"(%d, %two_by_three) : tensor<2x3xf32>
    %relu = onnx.Relu(%e) : tensor<2x3xf32>
    %turned = onnx.Transpose "turn"(%x) {perm = array<i64: 1, 0>} : tensor<3x2xf32>
    %half = onnx.Cast "halve"(%x) {to = 10 : i64} : tensor<2x3xf16>
    %six = onnx.Constant() {value = #onnx.tensor<tensor<1xi64>, "6">} : tensor<1xi64>
    %flat = onnx.Reshape "flatten"(%x, %six) : tensor<6xf32>
    %dropped, %mask = onnx.Dropout "mask is read"(%x) : tensor<2x3xf32>, tensor<2x3xi1>
    func.return %relu, %turned, %half, %flat, %dropped, %mask : tensor<2x3xf32>, tensor<3x2xf32>, tensor<2x3xf16>, tensor<6xf32>, tensor<2x3xf32>, tensor<2x3xi1>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %relu = onnx.Relu(%x) : tensor<2x3xf32>
// CHECK-NEXT: %turned = onnx.Transpose "turn"(%x) {perm = array<i64: 1, 0>} : tensor<3x2xf32>
// CHECK-NEXT: %half = onnx.Cast "halve"(%x) {to = 10 : i64} : tensor<2x3xf16>
// CHECK-NEXT: %six = onnx.Constant() {value = #onnx.tensor<tensor<1xi64>, "6">} : tensor<1xi64>
// CHECK-NEXT: %flat = onnx.Reshape "flatten"(%x, %six) : tensor<6xf32>
// CHECK-NEXT: %dropped, %mask = onnx.Dropout "mask is read"(%x) : tensor<2x3xf32>, tensor<2x3xi1>
// CHECK-NEXT: func.return %relu, %turned, %half, %flat, %dropped, %mask
// CHECK: canonicalize declined mask is read: its second result is read
