// RUN: qcc opt %s -p sink_transposes,canonicalize | filecheck %s
// Two transpositions that undo each other go, where what stands between works on rows that stay whole.

builtin.module attributes {onnx.opset = {"" = 23 : i64}} {
  func.func @heads(%x: tensor<1x?x4x8xf32, #onnx.dims<",sequence,,">>, %w: tensor<8xf32>, %cos: tensor<1x?x4xf32, #onnx.dims<",sequence,">>, %sin: tensor<1x?x4xf32, #onnx.dims<",sequence,">>) -> tensor<1x?x4x8xf32, #onnx.dims<",sequence,,">> {
    %t = onnx.Transpose(%x) {perm = array<i64: 0, 2, 1, 3>} : tensor<1x4x?x8xf32, #onnx.dims<",,sequence,">>
    %n = onnx.RMSNormalization "norm"(%t, %w) {axis = -1 : i64} : tensor<1x4x?x8xf32, #onnx.dims<",,sequence,">>
    %r = onnx.RotaryEmbedding "turn"(%n, %cos, %sin) : tensor<1x4x?x8xf32, #onnx.dims<",,sequence,">>
    %y = onnx.Transpose(%r) {perm = array<i64: 0, 2, 1, 3>} : tensor<1x?x4x8xf32, #onnx.dims<",sequence,,">>
    func.return %y : tensor<1x?x4x8xf32, #onnx.dims<",sequence,,">>
  }

  func.func @other_order(%x: tensor<2x3x4xf32>) -> tensor<4x3x2xf32> {
    %t = onnx.Transpose(%x) {perm = array<i64: 1, 2, 0>} : tensor<3x4x2xf32>
    %n = onnx.Relu(%t) : tensor<3x4x2xf32>
    %y = onnx.Transpose(%n) {perm = array<i64: 1, 0, 2>} : tensor<4x3x2xf32>
    func.return %y : tensor<4x3x2xf32>
  }

  func.func @three_axes(%x: tensor<2x3x4xf32>) -> tensor<2x3x4xf32> {
    %t = onnx.Transpose(%x) {perm = array<i64: 1, 2, 0>} : tensor<3x4x2xf32>
    %n = onnx.Relu "all of it"(%t) : tensor<3x4x2xf32>
    %y = onnx.Transpose(%n) {perm = array<i64: 2, 0, 1>} : tensor<2x3x4xf32>
    func.return %y : tensor<2x3x4xf32>
  }

  func.func @norm_of_another_axis(%x: tensor<2x3x4xf32>, %w: tensor<2xf32>) -> tensor<2x3x4xf32> {
    %t = onnx.Transpose(%x) {perm = array<i64: 1, 2, 0>} : tensor<3x4x2xf32>
    %n = onnx.LayerNormalization(%t, %w) {axis = -1 : i64} : tensor<3x4x2xf32>
    %y = onnx.Transpose(%n) {perm = array<i64: 2, 0, 1>} : tensor<2x3x4xf32>
    func.return %y : tensor<2x3x4xf32>
  }

  func.func @rows_that_are_picked(%x: tensor<1x5x4xf32>, %i: tensor<2xi64>) -> tensor<1x2x4xf32> {
    %t = onnx.Transpose(%x) {perm = array<i64: 1, 0, 2>} : tensor<5x1x4xf32>
    %n = onnx.Gather "pick"(%t, %i) {axis = 0 : i64} : tensor<2x1x4xf32>
    %y = onnx.Transpose(%n) {perm = array<i64: 1, 0, 2>} : tensor<1x2x4xf32>
    func.return %y : tensor<1x2x4xf32>
  }

  func.func @read_twice(%x: tensor<2x3x4xf32>) -> (tensor<2x3x4xf32>, tensor<3x2x4xf32>) {
    %t = onnx.Transpose(%x) {perm = array<i64: 1, 0, 2>} : tensor<3x2x4xf32>
    %n = onnx.Relu(%t) : tensor<3x2x4xf32>
    %y = onnx.Transpose(%n) {perm = array<i64: 1, 0, 2>} : tensor<2x3x4xf32>
    func.return %y, %n : tensor<2x3x4xf32>, tensor<3x2x4xf32>
  }

  func.func @a_number_for_each_row(%x: tensor<2x3x4xf32>, %b: tensor<3x1x1xf32>) -> tensor<2x3x4xf32> {
    %t = onnx.Transpose(%x) {perm = array<i64: 1, 0, 2>} : tensor<3x2x4xf32>
    %n = onnx.Add(%t, %b) : tensor<3x2x4xf32>
    %y = onnx.Transpose(%n) {perm = array<i64: 1, 0, 2>} : tensor<2x3x4xf32>
    func.return %y : tensor<2x3x4xf32>
  }
}

// CHECK-LABEL: func.func @heads
// CHECK-NOT: onnx.Transpose
// CHECK: %{{.*}} = onnx.RMSNormalization "norm"(%x, %w) {axis = -1 : i64} : tensor<1x?x4x8xf32, #onnx.dims<",sequence,,">>
// CHECK: onnx.Reshape(%{{.*}}, %{{.*}}) : tensor<1x?x32xf32, #onnx.dims<",sequence,">>
// CHECK: onnx.RotaryEmbedding "turn"(%{{.*}}, %cos, %sin) {num_heads = 4 : i64} : tensor<1x?x32xf32, #onnx.dims<",sequence,">>
// CHECK: %y = onnx.Reshape({{.*}}) : tensor<1x?x4x8xf32, #onnx.dims<",sequence,,">>
// CHECK-NEXT: func.return %y
// CHECK-LABEL: func.func @other_order
// CHECK: onnx.Transpose
// CHECK: onnx.Transpose
// CHECK-LABEL: func.func @three_axes
// CHECK-NEXT: %y = onnx.Relu "all of it"(%x) : tensor<2x3x4xf32>
// CHECK-LABEL: func.func @norm_of_another_axis
// CHECK: onnx.Transpose
// CHECK: onnx.Transpose
// CHECK-LABEL: func.func @rows_that_are_picked
// CHECK-NEXT: %y = onnx.Gather "pick"(%x, %i) {axis = 1 : i64} : tensor<1x2x4xf32>
// CHECK-LABEL: func.func @read_twice
// CHECK: onnx.Transpose
// CHECK: onnx.Transpose
// CHECK-LABEL: func.func @a_number_for_each_row
// CHECK: onnx.Transpose
// CHECK: onnx.Transpose
