// RUN: qcc opt %s -p fuse_rotary --explain 2>&1 | filecheck %s
// A rotation of both halves by the same angles is RotaryEmbedding; halves in the wrong order, or angles that may differ, stay.

builtin.module attributes {onnx.opset = {"" = 23 : i64}} {
  func.func @main(%x: tensor<1x2x?x8xf32> {onnx.name = "x"}, %angle: tensor<1x1x?x4xf32> {onnx.name = "angle"}, %other: tensor<1x1x?x8xf32> {onnx.name = "other"}) -> (tensor<1x2x?x8xf32> {onnx.name = "y"}, tensor<1x2x?x8xf32> {onnx.name = "z"}, tensor<1x2x?x8xf32> {onnx.name = "w"}) {
    %both = onnx.Concat(%angle, %angle) {axis = -1 : i64} : tensor<1x1x?x8xf32>
    %cos = onnx.Cos(%both) : tensor<1x1x?x8xf32>
    %sin = onnx.Sin(%both) : tensor<1x1x?x8xf32>
    %first, %second = onnx.Split(%x) {axis = -1 : i64, num_outputs = 2 : i64} : tensor<1x2x?x4xf32>, tensor<1x2x?x4xf32>
    %minus = onnx.Neg(%second) : tensor<1x2x?x4xf32>
    %turned = onnx.Concat(%minus, %first) {axis = -1 : i64} : tensor<1x2x?x8xf32>
    %wrong = onnx.Concat(%first, %minus) {axis = -1 : i64} : tensor<1x2x?x8xf32>
    %a = onnx.Mul(%x, %cos) : tensor<1x2x?x8xf32>
    %b = onnx.Mul(%turned, %sin) : tensor<1x2x?x8xf32>
    %y = onnx.Add "rotates"(%a, %b) : tensor<1x2x?x8xf32>
    %c = onnx.Mul(%wrong, %sin) : tensor<1x2x?x8xf32>
    %z = onnx.Add "swapped"(%a, %c) : tensor<1x2x?x8xf32>
    %d = onnx.Mul(%turned, %other) : tensor<1x2x?x8xf32>
    %w = onnx.Add "unequal"(%a, %d) : tensor<1x2x?x8xf32>
    func.return %y, %z, %w : tensor<1x2x?x8xf32>, tensor<1x2x?x8xf32>, tensor<1x2x?x8xf32>
  }
}

// CHECK: %y = onnx.RotaryEmbedding "rotates"(%x, {{%.*}}, {{%.*}}) : tensor<1x2x?x8xf32>
// CHECK: %z = onnx.Add "swapped"
// CHECK: %w = onnx.Add "unequal"
// CHECK: fuse_rotary declined{{.*}}unequal: the angles of the second half are not known to be those of the first
