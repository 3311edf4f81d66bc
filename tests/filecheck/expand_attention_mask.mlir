// RUN: qcc opt %s -p expand_attention_mask | filecheck %s
// A mask with one row for all queries is written out; a mask with a row a query stays.

builtin.module attributes {onnx.opset = {"" = 23 : i64}} {
  func.func @main(%q: tensor<1x2x5x8xf32> {onnx.name = "q"}, %short: tensor<1x1x1x5xf32> {onnx.name = "short"}, %full: tensor<1x1x5x5xf32> {onnx.name = "full"}) -> (tensor<1x2x5x8xf32> {onnx.name = "y"}, tensor<1x2x5x8xf32> {onnx.name = "z"}) {
    %y = onnx.Attention "broadcasts"(%q, %q, %q, %short) : tensor<1x2x5x8xf32>
    %z = onnx.Attention "complete"(%q, %q, %q, %full) : tensor<1x2x5x8xf32>
    func.return %y, %z : tensor<1x2x5x8xf32>, tensor<1x2x5x8xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %0 = onnx.Shape(%q) {start = 2 : i64, end = 3 : i64} : tensor<1xi64>
// CHECK-NEXT: %1 = onnx.Constant() {value = #onnx.tensor<tensor<2xi64>, "1 1">} : tensor<2xi64>
// CHECK-NEXT: %2 = onnx.Constant() {value = #onnx.tensor<tensor<1xi64>, "1">} : tensor<1xi64>
// CHECK-NEXT: %3 = onnx.Concat(%1, %0, %2) {axis = 0 : i64} : tensor<4xi64>
// CHECK-NEXT: %4 = onnx.Expand(%short, %3) : tensor<1x1x5x5xf32>
// CHECK-NEXT: %y = onnx.Attention "broadcasts"(%q, %q, %q, %4) : tensor<1x2x5x8xf32>
// CHECK-NEXT: %z = onnx.Attention "complete"(%q, %q, %q, %full) : tensor<1x2x5x8xf32>
// CHECK-NEXT: func.return %y, %z
