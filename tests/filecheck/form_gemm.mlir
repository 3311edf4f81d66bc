// RUN: qcc opt %s -p form_gemm --explain 2>&1 | filecheck %s
// A product of matrices and a constant of one number an output feature become one Gemm, on either side; others stay.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<3x2xf32> {onnx.name = "x"}, %s: tensor<1x3x2xf32> {onnx.name = "s"}) -> (tensor<3x2xf32> {onnx.name = "left"}, tensor<3x2xf32> {onnx.name = "right"}, tensor<3x2xf32> {onnx.name = "one"}, tensor<1x3x2xf32> {onnx.name = "stack"}, tensor<3x2xf32> {onnx.name = "computed"}) {
    %w = onnx.Constant() {value = #onnx.tensor<tensor<2x2xf32>, "1 2 3 4">} : tensor<2x2xf32>
    %b = onnx.Constant() {value = #onnx.tensor<tensor<2xf32>, "1 2">} : tensor<2xf32>
    %scalar = onnx.Constant() {value = #onnx.tensor<tensor<1xf32>, "1">} : tensor<1xf32>
    %p = onnx.MatMul "left"(%x, %w) : tensor<3x2xf32>
    %left = onnx.Add(%p, %b) : tensor<3x2xf32>
    %q = onnx.MatMul "right"(%x, %w) : tensor<3x2xf32>
    %right = onnx.Add(%b, %q) : tensor<3x2xf32>
    %r = onnx.MatMul "one number for all"(%x, %w) : tensor<3x2xf32>
    %one = onnx.Add "add one number"(%r, %scalar) : tensor<3x2xf32>
    %t = onnx.MatMul "of a stack"(%s, %w) : tensor<1x3x2xf32>
    %stack = onnx.Add "add to a stack"(%t, %b) : tensor<1x3x2xf32>
    %u = onnx.MatMul "plus computed"(%x, %w) : tensor<3x2xf32>
    %computed = onnx.Add "add computed"(%u, %x) : tensor<3x2xf32>
    func.return %left, %right, %one, %stack, %computed : tensor<3x2xf32>, tensor<3x2xf32>, tensor<3x2xf32>, tensor<1x3x2xf32>, tensor<3x2xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK: %left = onnx.Gemm "left"(%x, %w, %b) : tensor<3x2xf32>
// CHECK-NEXT: %right = onnx.Gemm "right"(%x, %w, %b) : tensor<3x2xf32>
// CHECK-NEXT: %r = onnx.MatMul "one number for all"(%x, %w) : tensor<3x2xf32>
// CHECK-NEXT: %one = onnx.Add "add one number"(%r, %scalar) : tensor<3x2xf32>
// CHECK-NEXT: %t = onnx.MatMul "of a stack"(%s, %w) : tensor<1x3x2xf32>
// CHECK-NEXT: %stack = onnx.Add "add to a stack"(%t, %b) : tensor<1x3x2xf32>
// CHECK-NEXT: %u = onnx.MatMul "plus computed"(%x, %w) : tensor<3x2xf32>
// CHECK-NEXT: %computed = onnx.Add "add computed"(%u, %x) : tensor<3x2xf32>
// CHECK-NEXT: func.return %left, %right, %one, %stack, %computed
// CHECK: form_gemm declined add one number: the constant has shape [1], not one number an output feature
// CHECK-NEXT: form_gemm declined add to a stack: the operand has rank 3, not 2
