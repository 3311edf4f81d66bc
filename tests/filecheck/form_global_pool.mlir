// RUN: qcc opt %s -p form_global_pool --explain 2>&1 | filecheck %s
// A mean over all axes behind the channels is a global pool, with a Flatten where the axes go; other means stay.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<2x3x4x4xf32> {onnx.name = "x"}) -> (tensor<2x3x1x1xf32> {onnx.name = "kept"}, tensor<2x3xf32> {onnx.name = "dropped"}, tensor<2x1x4x4xf32> {onnx.name = "channels"}) {
    %a = onnx.Constant() {value = #onnx.tensor<tensor<2xi64>, "2 3">} : tensor<2xi64>
    %b = onnx.Constant() {value = #onnx.tensor<tensor<2xi64>, "-1 -2">} : tensor<2xi64>
    %c = onnx.Constant() {value = #onnx.tensor<tensor<1xi64>, "1">} : tensor<1xi64>
    %kept = onnx.ReduceMean "kept"(%x, %a) : tensor<2x3x1x1xf32>
    %dropped = onnx.ReduceMean "dropped"(%x, %b) {keepdims = 0 : i64} : tensor<2x3xf32>
    %channels = onnx.ReduceMean "over channels"(%x, %c) : tensor<2x1x4x4xf32>
    func.return %kept, %dropped, %channels : tensor<2x3x1x1xf32>, tensor<2x3xf32>, tensor<2x1x4x4xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK: %kept = onnx.GlobalAveragePool "kept"(%x) : tensor<2x3x1x1xf32>
// CHECK-NEXT: %0 = onnx.GlobalAveragePool "dropped:pool"(%x) : tensor<2x3x1x1xf32>
// CHECK-NEXT: %dropped = onnx.Flatten "dropped"(%0) {axis = 1 : i64} : tensor<2x3xf32>
// CHECK-NEXT: %channels = onnx.ReduceMean "over channels"(%x, %c) : tensor<2x1x4x4xf32>
// CHECK: form_global_pool declined over channels: it does not average over all axes behind the channels
