// RUN: qcc opt %s -p quantize_linear{scheme="W8A16" group_size=16} --explain 2>&1 | filecheck %s
// Constant weights of MatMul and Gemm become codes [N, K]; a product of two computed matrices stays.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<3x2xf32> {onnx.name = "x"}, %z: tensor<2x4xf32> {onnx.name = "z"}) -> (tensor<3x4xf32> {onnx.name = "a"}, tensor<3x4xf32> {onnx.name = "b"}, tensor<3x4xf32> {onnx.name = "c"}, tensor<2x4xf32> {onnx.name = "d"}) {
    %w = onnx.Constant() {value = #onnx.tensor<tensor<2x4xf32>, "1 2 3 4 5 6 7 8">} : tensor<2x4xf32>
    %v = onnx.Constant() {value = #onnx.tensor<tensor<4x2xf32>, "1 2 3 4 5 6 7 8">} : tensor<4x2xf32>
    %s = onnx.Constant() {value = #onnx.tensor<tensor<2x2xf32>, "1 2 3 4">} : tensor<2x2xf32>
    %n = onnx.Constant() {value = #onnx.tensor<tensor<4xf32>, "1 2 3 4">} : tensor<4xf32>
    %a = onnx.MatMul "matmul"(%x, %w) : tensor<3x4xf32>
    %b = onnx.Gemm "gemm"(%x, %v, %n) {transB = 1 : i64} : tensor<3x4xf32>
    %c = onnx.MatMul "both computed"(%x, %z) : tensor<3x4xf32>
    %d = onnx.MatMul "constant on the left"(%s, %z) : tensor<2x4xf32>
    func.return %a, %b, %c, %d : tensor<3x4xf32>, tensor<3x4xf32>, tensor<3x4xf32>, tensor<2x4xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %s = onnx.Constant() {value = #onnx.tensor<tensor<2x2xf32>, "1 2 3 4">} : tensor<2x2xf32>
// CHECK-NEXT: %n = onnx.Constant() {value = #onnx.tensor<tensor<4xf32>, "1 2 3 4">} : tensor<4xf32>
// CHECK-NEXT: %0 = q.weight "matmul.q" : !q.tensor<tensor<4x2xf32>, "i8, f32 per 16">
// CHECK-NEXT: %a = q.linear "matmul"(%x, %0) : tensor<3x4xf32>
// CHECK-NEXT: %1 = q.weight "gemm.q" : !q.tensor<tensor<4x2xf32>, "i8, f32 per 16">
// CHECK-NEXT: %b = q.linear "gemm"(%x, %1, %n) : tensor<3x4xf32>
// CHECK-NEXT: %c = onnx.MatMul "both computed"(%x, %z) : tensor<3x4xf32>
// CHECK-NEXT: %d = onnx.MatMul "constant on the left"(%s, %z) : tensor<2x4xf32>
// CHECK-NEXT: func.return %a, %b, %c, %d
// CHECK: quantized matmul: weight [4, 2] as i8, f32 per 16
// CHECK-NEXT: quantized gemm: weight [4, 2] as i8, f32 per 16
// CHECK-NEXT: skipped both computed: both operands are computed
// CHECK-NEXT: skipped constant on the left: the constant is the left operand
