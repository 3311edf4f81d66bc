// RUN: qcc opt %s -p store_cache{form=i8} --explain 2>&1 | filecheck %s
// Every attention over a cache says what entries are rounded to; one that says so already stays.

builtin.module attributes {onnx.opset = {"" = 23 : i64}} {
  func.func @main(%q: tensor<1x?x32xf32> {onnx.name = "q"}, %k: tensor<1x?x16xf32> {onnx.name = "k"}, %past: tensor<1x2x?x8xf32> {onnx.name = "past"}, %total: tensor<i32> {onnx.name = "total"}) -> (tensor<1x?x32xf32> {onnx.name = "y"}, tensor<1x?x32xf32> {onnx.name = "z"}) {
    %y, %a, %b = q.attention "free"(%q, %k, %k, %past, %past, %total) {heads = 4 : i64, kv_heads = 2 : i64, scale = 0.5 : f32} : tensor<1x?x32xf32>, tensor<1x2x?x8xf32>, tensor<1x2x?x8xf32>
    %z, %c, %d = q.attention "exact"(%q, %k, %k, %past, %past, %total) {heads = 4 : i64, kv_heads = 2 : i64, scale = 0.5 : f32, cache = "f32"} : tensor<1x?x32xf32>, tensor<1x2x?x8xf32>, tensor<1x2x?x8xf32>
    func.return %y, %z : tensor<1x?x32xf32>, tensor<1x?x32xf32>
  }
}

// CHECK: q.attention "free"({{.*}}) {heads = 4 : i64, {{.*}}, cache = "i8"}
// CHECK: q.attention "exact"({{.*}}) {heads = 4 : i64, {{.*}}, cache = "f32"}
// CHECK: cache free: entries are kept in i8
