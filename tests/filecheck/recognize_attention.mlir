// RUN: qcc opt %s -p recognize_attention | filecheck %s
// Attention over a cache whose rows all end at `total` becomes q.attention; rows of their own lengths stay.

builtin.module attributes {onnx.opset = {"" = 23 : i64, com.microsoft = 1 : i64}} {
  func.func @main(%q: tensor<1x?x8xf32> {onnx.name = "q"}, %k: tensor<1x?x4xf32> {onnx.name = "k"}, %cache: tensor<1x1x?x4xf32> {onnx.name = "cache"}, %total: tensor<i32> {onnx.name = "total"}, %lengths: tensor<1xi32> {onnx.name = "lengths"}) -> (tensor<1x?x8xf32> {onnx.name = "y"}, tensor<1x?x8xf32> {onnx.name = "z"}) {
    %one = onnx.Constant() {value = #onnx.tensor<tensor<i32>, "1">} : tensor<i32>
    %shape = onnx.Constant() {value = #onnx.tensor<tensor<1xi64>, "1">} : tensor<1xi64>
    %last = onnx.Sub(%total, %one) : tensor<i32>
    %ends = onnx.Reshape(%last, %shape) : tensor<1xi32>
    %y, %k1, %v1 = msft.GroupQueryAttention "window"(%q, %k, %k, %cache, %cache, %ends, %total) {num_heads = 2 : i64, kv_num_heads = 1 : i64, local_window_size = 3 : i64} : tensor<1x?x8xf32>, tensor<1x1x?x4xf32>, tensor<1x1x?x4xf32>
    %z, %k2, %v2 = msft.GroupQueryAttention "ragged"(%q, %k, %k, %cache, %cache, %lengths, %total) {num_heads = 2 : i64, kv_num_heads = 1 : i64} : tensor<1x?x8xf32>, tensor<1x1x?x4xf32>, tensor<1x1x?x4xf32>
    func.return %y, %z : tensor<1x?x8xf32>, tensor<1x?x8xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %y, %k1, %v1 = q.attention "window"(%q, %k, %k, %cache, %cache, %total) {heads = 2 : i64, kv_heads = 1 : i64, scale = 5.000000e-01 : f32, window = 3 : i64} : tensor<1x?x8xf32>, tensor<1x1x?x4xf32>, tensor<1x1x?x4xf32>
// CHECK-NEXT: %z, %k2, %v2 = msft.GroupQueryAttention "ragged"
// CHECK-NEXT: func.return %y, %z
