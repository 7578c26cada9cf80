"""A training run as an object: its network, its history, and what can be done with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetlab import environment
from resnetlab.devices import Placement, start
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.progress import Progress, make_progress
from resnetlab.recipes import Recipe
from resnetlab.run_folder import RunFolder, RunInfo

if TYPE_CHECKING:
    import keras
    import numpy as np

    from resnetlab.data.pack import Pack
    from resnetlab.evaluation.metrics import Evaluation
    from resnetlab.inference.explanation import Explanation
    from resnetlab.inference.images import Images
    from resnetlab.inference.predictor import Prediction, Predictor


@dataclass(frozen=True)
class Export:
    """A network written for another runtime, and verified against Keras.

    Attributes:
        path: folder of the files, with a README.md on how to serve them.
        model: name of the architecture.
        format: "onnx", "saved_model", "litert", "openvino" or "safetensors".
        precision: of the stored weights, and of the arithmetic where the runtime follows it.
        bytes: size of the model's own files.
        verification: number of images, fraction with the same class, largest difference between probabilities, ...
    """

    path: Path
    model: str
    format: str
    precision: str
    bytes: int
    verification: dict[str, Any]

    @property
    def details(self) -> dict[str, Any]:
        """All that is recorded with the export: input, preprocessing, classes, versions."""
        from resnetlab.inference.engines import export_facts

        return export_facts(self.path)

    @property
    def summary(self) -> list[str]:
        """Sentences that describe the export and how closely its predictions match those of Keras."""
        found = self.verification
        if self.format == "safetensors":
            library = (
                f"loaded by {found['library']}: logits within {found['largest_difference']:.1g} of their scale"
                if found["library"]
                else f"not loaded by another library: {found['why']}"
            )
            return [
                f"{self.model} as safetensors: {self.bytes / 1e6:.1f} MB, in {self.path}",
                "verified: read back bit for bit",
                library,
            ]
        accuracy = (
            f"accuracy {found['accuracy']:.2%}, Keras {found['accuracy_keras']:.2%}" if "accuracy" in found else ""
        )
        sentences = [
            f"{self.model} as {self.format}, {self.precision}: {self.bytes / 1e6:.1f} MB",
            f"verified on {found['images']} images ({found['on']}): the same class as Keras for "
            f"{found['same_class']:.2%}, probabilities within {found['largest_difference']:.1g}",
            accuracy,
            f"how to serve it: {self.path / 'README.md'}",
        ]
        return [sentence for sentence in sentences if sentence]


class Run:
    """A finished or interrupted training run, or imported weights; made by `train`, `load` and `from_pretrained`.

    Keras is imported when a method first needs the network.

    Args:
        folder: the run's folder.
        backend: "tensorflow", "jax" or "torch"; by default the one that runs, $KERAS_BACKEND, or the first installed.
        device: "auto", "cpu" or "gpu".
    """

    def __init__(
        self, folder: RunFolder, *, backend: str | None = None, device: str = "auto", pack: Pack | None = None
    ) -> None:
        self.folder = folder
        self._backend, self._device = backend, device
        self._pack = pack  # the images that it was just trained on, which may have changed on the disk meanwhile
        self._predictors: dict[tuple[str, str], Predictor] = {}
        self._weights_read: object = None  # which version of the file they are of

    def __repr__(self) -> str:
        info = self.info
        return f"Run({str(self.path)!r}, {info.model} on {info.source}, {len(info.class_names)} classes, {info.status})"

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def device(self) -> str:
        """As it was given: "auto", "cpu" or "gpu"."""
        return self._device

    @property
    def info(self) -> RunInfo:
        """Model, data and state of training, as run.json records them."""
        return self.folder.info()

    @property
    def status(self) -> str:
        """ "started", "interrupted", "finished", "diverged" or "imported"."""
        return self.info.status

    @property
    def recipe(self) -> Recipe:
        """Every hyperparameter."""
        return self.folder.recipe()

    @property
    def class_names(self) -> tuple[str, ...]:
        """One for each logit, in their order."""
        return self.info.class_names

    @property
    def history(self) -> list[dict[str, Any]]:
        """A record of each finished epoch: loss, accuracy, validation loss and top-1, learning rate, images/s."""
        return self.folder.metrics()

    @property
    def model(self) -> keras.Model:
        """The network with its best weights: uint8 images (batch, size, size, 3) in, logits (batch, classes) out."""
        return self.predictor().network

    def evaluate(
        self,
        data: str | PathLike[str] | None = None,
        *,
        flips: bool = False,
        allow_losses: bool = False,
        progress: Progress | str | None = "auto",
    ) -> Evaluation:
        """Accuracy, confusion, calibration.

        Args:
            data: another data set with the same classes, a folder or a known name; images that the run or its ancestors
                were trained on are left out. By default the run's own test images or, if it has none, its
                validation images; the evaluation and its plots are then saved in the run folder.
            flips: also state the accuracy of the mean of each image's logits and its mirror image's
                (`top1_with_flips`); all else is without.
            allow_losses: a class of other data may lose most of its images to the audit.

        Raises:
            UsageError: imported weights without `data`; data with classes that the run does not know.
            ResnetlabError: no weights yet; nothing is left to evaluate on; the run's data changed or moved.

        >>> run.evaluate().top1 > 0.8
        True
        """
        report = make_progress(progress)
        if data is not None:
            return self._evaluate_on(str(data), report, flips=flips, allow_losses=allow_losses)
        from resnetlab.data.loading import open_run_data

        self.folder.weights()
        try:
            _, pack = open_run_data(self.folder, progress=report)
        except ResnetlabError as error:
            if (trained_on := self._trained_on()) is None:
                raise
            pack = trained_on
            report.warning(f"{error} This evaluation is of the images as they were when they were trained on.")
        return self._evaluate_own(pack, report, flips=flips)

    def _evaluate_own(self, pack: Pack, report: Progress, *, flips: bool) -> Evaluation:
        import numpy as np

        from resnetlab.evaluation.label_errors import label_errors, write_label_errors
        from resnetlab.evaluation.metrics import evaluate_logits
        from resnetlab.report import plots
        from resnetlab.report.loggers import log_evaluation

        subset = next((s for s in ("test", "validation") if len(pack.indices(s))), None)
        if subset is None:
            raise ResnetlabError("The run has neither test nor validation images to evaluate on. Give other data.")
        indices = pack.indices(subset)
        predictor, labels = self.predictor(progress=report), pack.labels[indices]
        logits = predictor.logits(pack.images, indices)
        mirrored = predictor.logits(pack.images, indices, mirrored=True) if flips else None
        found = evaluate_logits(logits, labels, pack.class_names, subset=subset, mirrored=mirrored)

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(file, logits=logits, labels=labels, indices=indices, names=np.array(names))

        names = [pack.names[i] for i in indices]
        suspects = label_errors(logits, labels)
        self.folder.write_json("evaluation.json", found.to_json())
        self.folder.save("predictions.npz", write)
        self.folder.save("label_errors.csv", partial(write_label_errors, suspects, names, pack.class_names))
        if self.history:
            plots.curves(self.history, self.path / "curves.png")
        plots.confusion(found.confusion, pack.class_names, self.path / "confusion.png")
        plots.reliability(found.bins, self.path / "reliability.png")
        drawn = [self.path / f"{name}.png" for name in ("curves", "confusion", "reliability")]
        self._write_report(self.path / "report.html", pack)
        try:
            log_evaluation(self.folder, found.top1, found.loss, subset, [p for p in drawn if p.exists()], report)
        except ResnetlabError as error:  # the evaluation is worth more than its log
            report.warning(f"The evaluation is not logged. {error}")
        return found

    def _evaluate_on(self, data: str, report: Progress, *, flips: bool, allow_losses: bool) -> Evaluation:
        import numpy as np

        from resnetlab.data.loading import open_data, select_unseen
        from resnetlab.evaluation.metrics import evaluate_logits

        predictor = self.predictor(progress=report)
        source, pack = open_data(data, predictor.recipe, progress=report, allow_losses=allow_losses)
        if unknown_classes := sorted(set(pack.class_names) - set(self.class_names)):
            raise UsageError(
                f"{source.location} has classes that the run does not know: {', '.join(unknown_classes[:5])}. "
                f"Expected some of: {', '.join(self.class_names[:20])}. For imported weights, `resnetlab import "
                "--class-names FILE` names them."
            )
        kept, notes = select_unseen(self.folder, source, pack)
        for note in notes:
            report.info(note)
        place = np.array([self.class_names.index(name) for name in pack.class_names])
        labels, logits = place[pack.labels[kept]], predictor.logits(pack.images, kept)
        mirrored = predictor.logits(pack.images, kept, mirrored=True) if flips else None
        return evaluate_logits(logits, labels, self.class_names, mirrored=mirrored)

    def predict(
        self,
        images: Images,
        *,
        top: int = 3,
        engine: str = "keras",
        precision: str = "float32",
        progress: Progress | str | None = "auto",
    ) -> list[Prediction]:
        """Classify images.

        Args:
            images: a file, a folder, a glob, a PIL image, a uint8 array (height, width, 3), or several of these.
            top: number of classes to give for each image.
            engine: "keras", or "onnx" and "openvino", which run an export that is made at the first use.
            precision: of the engine's export: "float32", "float16" or "int8".

        Returns:
            One prediction for each image, in order. For unusable images, `label` is None and `problem` the reason.

        Raises:
            UsageError: an argument that is not an image; only paths that do not exist; an unknown engine or precision.
            ResnetlabError: no weights yet, or damaged ones; a package is missing.

        >>> prediction = run.predict("cat.jpg")[0]
        >>> prediction.label, len(prediction.top)
        ('cat', 2)
        """
        from resnetlab.inference.images import collect_images

        found, notes = collect_images(images)
        report = make_progress(progress)
        for note in notes:
            report.info(note)
        predictions = []
        for prediction in self.predictor(engine, precision, progress=report).predict(found, top=top):
            predictions.append(prediction)
            report.count("predicting", len(predictions), len(found))
        return predictions

    def report(self, output: str | PathLike[str] | None = None) -> Path:
        """Write a page about the run: curves, results by class, mistakes with Grad-CAM, the data, the machine.

        One HTML file that needs no network. `evaluate` on the run's own data writes it into the run folder.

        Args:
            output: file of the page; by default report.html in the run folder.

        >>> run.report().name
        'report.html'
        """
        path = self.path / "report.html" if output is None else Path(output).expanduser()
        self._write_report(path, None)
        return path

    def _write_report(self, path: Path, pack: Pack | None) -> None:
        """Write the page; `pack` has the run's images, if they are loaded already."""
        from resnetlab.report.page import write_report

        evaluated = (self.path / "predictions.npz").exists()
        if pack is None and evaluated:
            pack = self._own_pack()
        overlay, filters = None, None
        if pack is not None and evaluated:
            predictor, filters = self.predictor(), self.filters()
            from resnetlab.inference.explanation import overlays

            overlay = partial(overlays, predictor)
        write_report(self.folder, path, pack=pack, overlay=overlay, filters=filters)

    def _trained_on(self) -> Pack | None:
        """The images that this object was trained on, unless the run has been trained on others since."""
        return self._pack if self._pack is not None and self._pack.key == self.info.pack else None

    def _own_pack(self) -> Pack | None:
        """The run's images; None where they are not on this machine, or changed, or it has none."""
        from resnetlab.data.loading import open_run_data

        try:
            return open_run_data(self.folder, progress=make_progress(None), download=False)[1]
        except ResnetlabError:
            return self._trained_on()

    def explain(
        self,
        images: Images,
        *,
        method: str = "grad-cam",
        stage: str | None = None,
        class_name: str | None = None,
        features: bool = False,
        progress: Progress | str | None = "auto",
    ) -> list[Explanation]:
        """Explain the prediction for each image, with a class activation map or occlusion.

        Args:
            images: as in `predict`.
            method: "grad-cam", "grad-cam++", "hires-cam", "layer-cam", or "occlusion", which needs no gradient.
            stage: the stage whose features are shown, such as "stage3"; by default the last one.
            class_name: the class to explain; by default the predicted one.
            features: with the stage's feature maps.

        Raises:
            UsageError: an unknown method, stage or class; an argument that is not an image.
            ResnetlabError: no weights yet, or damaged ones.

        >>> explanation = run.explain("cat.jpg")[0]
        >>> explanation.class_name, explanation.map.shape, explanation.overlay.size
        ('cat', (32, 32), (32, 32))
        """
        from resnetlab.inference.images import collect_images

        found, notes = collect_images(images)
        report = make_progress(progress)
        for note in notes:
            report.info(note)
        predictor = self.predictor(progress=report)  # which sets the backend up before Keras is imported
        from resnetlab.inference.explanation import explanations

        made = []
        for each in explanations(
            predictor, found, method=method, stage=stage, class_name=class_name, features=features
        ):
            made.append(each)
            report.count("explaining", len(made), len(found))
        return made

    def filters(self) -> np.ndarray:
        """The weights of the first convolution: (filters, size, size, 3) float32, for red, green and blue.

        >>> run.filters().shape
        (16, 3, 3, 3)
        """
        model = self.model
        from resnetlab.evaluation.features import first_filters

        return first_filters(model)

    def predict_test_images(
        self,
        count: int,
        *,
        top: int = 3,
        engine: str = "keras",
        precision: str = "float32",
        progress: Progress | str | None = "auto",
    ) -> list[Prediction]:
        """Predictions of `count` of the run's own test images, chosen at random, with their `true_label`.

        Args:
            count: maximum number of images.
            top, engine, precision: as in `predict`.
        """
        import numpy as np

        from resnetlab.data.loading import open_run_data
        from resnetlab.inference.predictor import Prediction

        if count < 1:
            raise UsageError(f"Received count={count}, expected at least 1.")
        report = make_progress(progress)
        self.folder.weights()
        _, pack = open_run_data(self.folder, progress=report)
        indices = pack.indices("test")
        if not len(indices):
            raise ResnetlabError("The run has no test images to predict.")
        chosen = np.random.default_rng(0).permutation(indices)[:count]
        ranked = self.predictor(engine, precision, progress=report).rank(pack.images[chosen], top=top)
        return [
            Prediction.of(pack.names[i], classes, true_label=pack.class_names[pack.labels[i]])
            for i, classes in zip(chosen, ranked, strict=True)
        ]

    def export(
        self,
        format: str = "onnx",
        *,
        precision: str = "float32",
        batch_size: int | None = None,
        output: str | PathLike[str] | None = None,
        data: str | PathLike[str] | None = None,
        names: str = "resnetlab",
        license: str | None = None,
        progress: Progress | str | None = "auto",
    ) -> Export:
        """Export the network to another runtime, and verify it against Keras on real images; or its weights, to share.

        Args:
            format: "onnx", "saved_model", "litert" or "openvino"; or "safetensors": weights and a model card, as the
                Hugging Face hub keeps them, which `from_pretrained` reads back.
            precision: "float32"; "float16" or "int8" (not saved_model); "bfloat16" (saved_model).
            batch_size: fixed in the export; None for any.
            output: folder; by default RUN/export/FORMAT-PRECISION. An existing export is replaced.
            data: images to verify on, and to calibrate int8 on; by default the run's own.
            names: of safetensors: whose names the weights have: "resnetlab", "torchvision", "timm" or "transformers".
            license: of safetensors: for the model card, such as "apache-2.0".

        Raises:
            UsageError: an unknown format, a library without this network, a precision that it does not have, an output
                folder that is in the way.
            ResnetlabError: a package is missing, or the export failed its verification.

        >>> run.export("onnx").verification["same_class"]
        1.0
        """
        from resnetlab.data.loading import open_data, open_run_data
        from resnetlab.inference import export as exports
        from resnetlab.inference.engines import export_facts

        if format == "safetensors":
            if (precision, batch_size, data) != ("float32", None, None):
                raise UsageError("safetensors has the weights in float32: leave precision, batch_size and data out.")
            return self._share(names, None if output is None else Path(output), license, progress)
        if (names, license) != ("resnetlab", None):
            raise UsageError("names and license are for the format safetensors: leave them out.")
        exports.require_supported(format, precision)  # before anything is decoded
        self.folder.weights()
        report, pack = make_progress(progress), None
        if data is not None:
            _, pack = open_data(str(data), self.recipe, progress=report, allow_losses=True)
        elif self.info.data is not None:
            try:
                _, pack = open_run_data(self.folder, progress=report)
            except ResnetlabError as error:
                if precision == "int8":
                    raise
                report.info(f"The run's data is not available, so the export is verified on other photographs. {error}")
        start(Placement(self._backend, self._device), progress=report)
        target = exports.export(
            self.folder,
            format,
            precision=precision,
            batch_size=batch_size,
            output=None if output is None else Path(output),
            pack=pack,
        )
        details = export_facts(target)
        return Export(target, details["model"], format, precision, details["bytes"], details["verified"])

    def _share(self, names: str, output: Path | None, license: str | None, progress: Progress | str | None) -> Export:
        self.folder.weights()
        start(Placement(self._backend, self._device), progress=make_progress(progress))
        from resnetlab.inference.engines import export_facts
        from resnetlab.inference.sharing import share

        target = share(self.folder, names=names, output=output, license=license)
        details = export_facts(target)
        return Export(target, details["model"], "safetensors", "float32", details["bytes"], details["verified"])

    def push_to_hub(
        self,
        repository: str,
        *,
        names: str = "resnetlab",
        license: str | None = None,
        private: bool = True,
        token: str | None = None,
        progress: Progress | str | None = "auto",
    ) -> str:
        """Export the weights as safetensors, and upload them with their model card to the Hugging Face hub.

        Args:
            repository: USER/NAME; created where there is none.
            names, license: as in `export`.
            private: whether a new repository is.
            token: of the hub; by default the one that `hf auth login` has stored, or $HF_TOKEN.

        Returns:
            The repository's address.

        Raises:
            UsageError: as `export`; no name of a repository.
            ResnetlabError: as `export`; no network, no token, no permission.
        """
        from resnetlab.inference.hub import push

        folder = self.export("safetensors", names=names, license=license, progress=progress).path
        return push(folder, repository, private=private, token=token)

    def predictor(
        self, engine: str = "keras", precision: str = "float32", *, progress: Progress | str | None = None
    ) -> Predictor:
        """The network, ready to predict; kept until the run's weights change."""
        from resnetlab.inference.predictor import Predictor

        found = self.folder.weights().stat()
        if (version := (found.st_ino, found.st_mtime_ns, found.st_size)) != self._weights_read:
            self._predictors, self._weights_read = {}, version
        if (engine, precision) not in self._predictors:
            if engine == "keras":
                start(Placement(self._backend, self._device), progress=make_progress(progress))
            elif self._device == "gpu":
                raise UsageError(f"The engine {engine} computes on the CPU: use the engine keras for device='gpu'.")
            else:  # Keras is imported only if there is something to export
                environment.configure(backend=self._backend, device=self._device)
            self._predictors[engine, precision] = Predictor(self.folder, engine=engine, precision=precision)
        return self._predictors[engine, precision]
