"""The public API in ten lines: train on scikit-learn's digits, evaluate, predict, export.

pip install ".[cpu,onnx]"                          once
python examples/quickstart.py                      a few minutes on a CPU
python examples/quickstart.py photos/              a folder with a folder of images for each class
KERAS_BACKEND=jax python examples/quickstart.py    on another backend: jax or torch
"""

import sys

import resnetlab as rl


def main(data: str = "digits") -> rl.Run:
    run = rl.train(data, epochs=5)  # keywords are fields of the recipe
    metrics = run.evaluate()
    low, high = metrics.top1_interval
    print(f"{metrics.top1:.1%} of {metrics.n} test images are right (95 % interval {low:.1%} to {high:.1%})")
    for prediction in run.predict_test_images(3):
        print(
            f"{prediction.path} is {prediction.true_label}, predicted {prediction.label} {prediction.probability:.1%}"
        )
    print(run.export("onnx").path)
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
