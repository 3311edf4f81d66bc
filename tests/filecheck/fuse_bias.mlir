// RUN: qcc opt %s -p fuse_bias --explain 2>&1 | filecheck %s
// A constant of one number an output feature becomes the bias, on either side; any other addition stays.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<3x32xf32> {onnx.name = "x"}) -> (tensor<3x2xf32> {onnx.name = "left"}, tensor<3x2xf32> {onnx.name = "right"}, tensor<3x2xf32> {onnx.name = "one"}, tensor<3x2xf32> {onnx.name = "twice"}) {
    %w = q.weight "w" : !q.tensor<tensor<2x32xf32>, "i4, f32 per 32">
    %b = onnx.Constant() {value = #onnx.tensor<tensor<2xf32>, "1 2">} : tensor<2xf32>
    %scalar = onnx.Constant() {value = #onnx.tensor<tensor<1xf32>, "1">} : tensor<1xf32>
    %p = q.linear "left"(%x, %w) : tensor<3x2xf32>
    %left = onnx.Add(%p, %b) : tensor<3x2xf32>
    %q = q.linear "right"(%x, %w) : tensor<3x2xf32>
    %right = onnx.Add(%b, %q) : tensor<3x2xf32>
    %r = q.linear "one number for all"(%x, %w) : tensor<3x2xf32>
    %one = onnx.Add "add one number"(%r, %scalar) : tensor<3x2xf32>
    %s = q.linear "has a bias"(%x, %w, %b) : tensor<3x2xf32>
    %twice = onnx.Add(%s, %b) : tensor<3x2xf32>
    func.return %left, %right, %one, %twice : tensor<3x2xf32>, tensor<3x2xf32>, tensor<3x2xf32>, tensor<3x2xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %w = q.weight "w" : !q.tensor<tensor<2x32xf32>, "i4, f32 per 32">
// CHECK-NEXT: %b = onnx.Constant() {value = #onnx.tensor<tensor<2xf32>, "1 2">} : tensor<2xf32>
// CHECK-NEXT: %scalar = onnx.Constant() {value = #onnx.tensor<tensor<1xf32>, "1">} : tensor<1xf32>
// CHECK-NEXT: %left = q.linear "left"(%x, %w, %b) : tensor<3x2xf32>
// CHECK-NEXT: %right = q.linear "right"(%x, %w, %b) : tensor<3x2xf32>
// CHECK-NEXT: %r = q.linear "one number for all"(%x, %w) : tensor<3x2xf32>
// CHECK-NEXT: %one = onnx.Add "add one number"(%r, %scalar) : tensor<3x2xf32>
// CHECK-NEXT: %s = q.linear "has a bias"(%x, %w, %b) : tensor<3x2xf32>
// CHECK-NEXT: %twice = onnx.Add(%s, %b) : tensor<3x2xf32>
// CHECK-NEXT: func.return %left, %right, %one, %twice
// CHECK: fuse_bias declined add one number: the constant has shape [1], not one number an output feature
