// RUN: qcc opt %s -p form_gather --explain 2>&1 | filecheck %s
// GatherND whose indices are single numbers is Gather; batches that pick their own rows, and other indices, stay.

builtin.module attributes {onnx.opset = {"" = 23 : i64}} {
  func.func @main(%x: tensor<5x4xf32> {onnx.name = "x"}, %i: tensor<3xi64> {onnx.name = "i"}, %j: tensor<3x1xi64> {onnx.name = "j"}, %b: tensor<5xi64> {onnx.name = "b"}, %k: tensor<2xi64> {onnx.name = "k"}) -> (tensor<3x4xf32> {onnx.name = "a"}, tensor<3x4xf32> {onnx.name = "c"}, tensor<5xf32> {onnx.name = "d"}, tensor<1xf32> {onnx.name = "e"}) {
    %last = onnx.Constant() {value = #onnx.tensor<tensor<1xi64>, "-1">} : tensor<1xi64>
    %first = onnx.Constant() {value = #onnx.tensor<tensor<1xi64>, "0">} : tensor<1xi64>
    %u = onnx.Unsqueeze(%i, %last) : tensor<3x1xi64>
    %a = onnx.GatherND "single"(%x, %u) : tensor<3x4xf32>
    %c = onnx.GatherND "given"(%x, %j) : tensor<3x4xf32>
    %v = onnx.Unsqueeze(%b, %last) : tensor<5x1xi64>
    %d = onnx.GatherND "batched"(%x, %v) {batch_dims = 1 : i64} : tensor<5xf32>
    %w = onnx.Unsqueeze(%k, %first) : tensor<1x2xi64>
    %e = onnx.GatherND "another axis"(%x, %w) : tensor<1xf32>
    func.return %a, %c, %d, %e : tensor<3x4xf32>, tensor<3x4xf32>, tensor<5xf32>, tensor<1xf32>
  }
}

// CHECK: %a = onnx.Gather "single"(%x, %i) {axis = 0 : i64} : tensor<3x4xf32>
// CHECK: %c = onnx.GatherND "given"(%x, %j)
// CHECK: %d = onnx.GatherND "batched"
// CHECK: %e = onnx.GatherND "another axis"
// CHECK: form_gather declined batched: its batches pick rows of their own
