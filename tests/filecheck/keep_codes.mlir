// RUN: qcc opt %s -p keep_codes --explain 2>&1 | filecheck %s
// Constant codes behind DequantizeLinear and in MatMulNBits stay what they are; computed codes are no weight.

builtin.module attributes {onnx.opset = {"" = 21 : i64, "com.microsoft" = 1 : i64}} {
  func.func @main(%x: tensor<3x16xf32> {onnx.name = "x"}, %c: tensor<16x2xui8> {onnx.name = "c"}) -> (tensor<3x2xf32> {onnx.name = "a"}, tensor<3x1xf32> {onnx.name = "b"}, tensor<3x1xf32> {onnx.name = "n"}, tensor<3x2xf32> {onnx.name = "d"}) {
    %codes = onnx.Constant() {value = #onnx.tensor<tensor<16x2xi8>, "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15">} : tensor<16x2xi8>
    %scale = onnx.Constant() {value = #onnx.tensor<tensor<2x2xf32>, "1 2 3 4">} : tensor<2x2xf32>
    %w = onnx.DequantizeLinear "blocks"(%codes, %scale) {axis = 0 : i64, block_size = 8 : i64} : tensor<16x2xf32>
    %a = onnx.MatMul "blocked"(%x, %w) : tensor<3x2xf32>
    %row = onnx.Constant() {value = #onnx.tensor<tensor<1x16xui8>, "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15">} : tensor<1x16xui8>
    %one = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "0.5">} : tensor<f32>
    %zero = onnx.Constant() {value = #onnx.tensor<tensor<ui8>, "7">} : tensor<ui8>
    %v = onnx.DequantizeLinear "tensor"(%row, %one, %zero) : tensor<1x16xf32>
    %t = onnx.Transpose(%v) {perm = array<i64: 1, 0>} : tensor<16x1xf32>
    %b = onnx.MatMul "turned"(%x, %t) : tensor<3x1xf32>
    %packed = onnx.Constant() {value = #onnx.tensor<tensor<1x1x8xui8>, "16 50 84 118 152 186 220 254">} : tensor<1x1x8xui8>
    %s = onnx.Constant() {value = #onnx.tensor<tensor<1x1xf32>, "2">} : tensor<1x1xf32>
    %n = msft.MatMulNBits "packed"(%x, %packed, %s) {K = 16 : i64, N = 1 : i64, bits = 4 : i64, block_size = 16 : i64} : tensor<3x1xf32>
    %f = onnx.DequantizeLinear "input"(%c, %one) : tensor<16x2xf32>
    %d = onnx.MatMul "computed"(%x, %f) : tensor<3x2xf32>
    func.return %a, %b, %n, %d : tensor<3x2xf32>, tensor<3x1xf32>, tensor<3x1xf32>, tensor<3x2xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %0 = q.weight "blocked.q" : !q.tensor<tensor<2x16xf32>, "i8, f32 per 8">
// CHECK-NEXT: %a = q.linear "blocked"(%x, %0) : tensor<3x2xf32>
// CHECK: %1 = q.weight "turned.q" : !q.tensor<tensor<1x16xf32>, "u8, f32 per tensor, zero u8">
// CHECK-NEXT: %b = q.linear "turned"(%x, %1) : tensor<3x1xf32>
// CHECK-NEXT: %2 = q.weight "packed.q" : !q.tensor<tensor<1x16xf32>, "i4, f32 per 16">
// CHECK-NEXT: %n = q.linear "packed"(%x, %2) : tensor<3x1xf32>
// CHECK-NEXT: %f = onnx.DequantizeLinear "input"(%c, %one) : tensor<16x2xf32>
// CHECK-NEXT: %d = onnx.MatMul "computed"(%x, %f) : tensor<3x2xf32>
// CHECK: quantized blocked: kept as i8, f32 per 8, the DequantizeLinear of its file
// CHECK: quantized packed: kept as i4, f32 per 16, the MatMulNBits of its file
// CHECK-NEXT: keep_codes declined computed: the second operand is computed
