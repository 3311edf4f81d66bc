// RUN: qcc opt %s -p merge_duplicates | filecheck %s
// The second Cos of one value, and what reads it, are the first ones; another attribute, or chance, makes another value.

builtin.module attributes {onnx.opset = {"" = 21 : i64}} {
  func.func @main(%x: tensor<4xf32> {onnx.name = "x"}) -> (tensor<4xf32> {onnx.name = "a"}, tensor<4xf32> {onnx.name = "b"}, tensor<4xf32> {onnx.name = "c"}, tensor<4xf32> {onnx.name = "d"}) {
    %0 = onnx.Cos "first"(%x) : tensor<4xf32>
    %1 = onnx.Neg "n1"(%0) : tensor<4xf32>
    %2 = onnx.Cos "again"(%x) : tensor<4xf32>
    %3 = onnx.Neg "n2"(%2) : tensor<4xf32>
    %4 = onnx.Softmax "s1"(%x) {axis = 0 : i64} : tensor<4xf32>
    %5 = onnx.Softmax "s2"(%x) {axis = -1 : i64} : tensor<4xf32>
    %6 = onnx.RandomUniformLike "r1"(%x) : tensor<4xf32>
    %7 = onnx.RandomUniformLike "r2"(%x) : tensor<4xf32>
    %8 = onnx.Add(%1, %3) : tensor<4xf32>
    %9 = onnx.Add(%4, %5) : tensor<4xf32>
    func.return %8, %9, %6, %7 : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
  }
}

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %0 = onnx.Cos "first"(%x) : tensor<4xf32>
// CHECK-NEXT: %1 = onnx.Neg "n1"(%0) : tensor<4xf32>
// CHECK-NEXT: %2 = onnx.Softmax "s1"(%x)
// CHECK-NEXT: %3 = onnx.Softmax "s2"(%x)
// CHECK-NEXT: %4 = onnx.RandomUniformLike "r1"(%x)
// CHECK-NEXT: %5 = onnx.RandomUniformLike "r2"(%x)
// CHECK-NEXT: %6 = onnx.Add(%1, %1) : tensor<4xf32>
// CHECK-NEXT: %7 = onnx.Add(%2, %3) : tensor<4xf32>
// CHECK-NEXT: func.return %6, %7, %4, %5
