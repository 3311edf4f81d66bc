// RUN: qcc opt %s -p expand_attention_mask | filecheck %s
// A mask with one row for all queries is written out; a mask with a row a query stays.

builtin.module attributes {onnx.opset = {"" = 23 : i64}} {
  func.func @main(%q: tensor<1x2x5x8xf32> {onnx.name = "q"}, %short: tensor<1x1x1x5xf32> {onnx.name = "short"}, %full: tensor<1x1x5x5xf32> {onnx.name = "full"}) -> (tensor<1x2x5x8xf32> {onnx.name = "y"}, tensor<1x2x5x8xf32> {onnx.name = "z"}) {
    %y = onnx.Attention "broadcasts"(%q, %q, %q, %short) : tensor<1x2x5x8xf32>
    %z = onnx.Attention "complete"(%q, %q, %q, %full) : tensor<1x2x5x8xf32>
    func.return %y, %z : tensor<1x2x5x8xf32>, tensor<1x2x5x8xf32>
  }
}
