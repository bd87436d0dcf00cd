"""Linear models of features, and the choice of their hyperparameter by cross-validation.

Probes and the pixel baseline choose their hyperparameter for each label on the patients whose
labels they learn from, so a run with few labels uses no others. The criterion is the log loss of
the out-of-fold predictions. With few positives their AUROC has several maxima that hardly differ,
and mostly chooses less well. A label of which no value predicts more than a constant gets a plain
value, because the lowest loss then belongs to the strongest penalty, whatever ranks best.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import entr
from sklearn.linear_model import LogisticRegression

INVERSE_PENALTIES = tuple(10.0**power for power in range(-6, 5))  # C of LogisticRegression
PLAIN_INVERSE_PENALTY = 0.01  # for labels that a cross-validation cannot tune
FOLDS = 5
ABSENT = 1e-12  # probability of a class without images
WIDE = 256  # features from which a matrix of Hessians costs more than its products with vectors
PATIENCE = 4  # options in a row that are worse than the best one before a search ends


@dataclass(frozen=True)
class Choice:
    """Hyperparameter of a label, and its out-of-fold loss; NaN for a plain value."""

    value: float
    loss: float


def patient_folds(targets: np.ndarray, patients: np.ndarray) -> np.ndarray:  # [N] int
    """Assign each image to one of FOLDS folds, by patient, in the same way in every process.

    Patients are sorted by their rarest positive label and their name, and dealt to the folds in
    turn. Rare labels are therefore in as many folds as possible. StratifiedGroupKFold refuses
    labels with fewer images than folds.

    Args:
        targets: Targets [N, K] in [0, 1], NaN where unknown.
        patients: Patient of each image, [N].
    """
    names, patient = np.unique(patients, return_inverse=True)
    has_label = np.zeros((len(names), targets.shape[1]), bool)
    np.logical_or.at(has_label, patient, targets >= 0.5)  # False for NaN
    counts = has_label.sum(axis=0)
    rarest = np.where(has_label, counts, len(names) + 1).argmin(axis=1)
    rarest[~has_label.any(axis=1)] = -1
    fold = np.empty(len(names), int)
    fold[np.argsort(rarest, kind='stable')] = np.arange(len(names)) % FOLDS
    return fold[patient]


def choose(
    options: Sequence[float],
    logits: Iterable[np.ndarray],
    *,
    target: np.ndarray,
    fold: np.ndarray,
    plain: float,
) -> Choice:
    """Choose the option with the lowest out-of-fold log loss for a label.

    Args:
        options: Values of the hyperparameter, from strong to weak smoothing or vice versa.
        logits: Out-of-fold logits [N] for each option, computed on demand. The search ends when
            PATIENCE options in a row are worse than the best one.
        target: Targets [N] in [0, 1], NaN where unknown.
        fold: Fold of each image, [N].
        plain: Value for a label if no option has a lower log loss than the share of positives, or
            if a class is in fewer than two folds, so that a fold cannot be predicted from others.
    """
    if min(np.unique(fold[target > 0]).size, np.unique(fold[target < 1]).size) < 2:
        return Choice(plain, float('nan'))
    share = np.nanmean(target)
    constant = entr([share, 1 - share]).sum()
    losses = (np.nanmean(np.logaddexp(0, values) - target * values) for values in logits)
    return choose_lowest(options, losses, constant=constant, plain=plain)


def choose_lowest(
    options: Sequence[float], losses: Iterable[float], *, constant: float, plain: float
) -> Choice:
    """Choose the option with the lowest loss, or `plain` if none is below that of a constant.

    The losses are computed on demand. The search ends when PATIENCE options in a row are worse than
    the best one.
    """
    found: list[float] = []
    for loss in losses:
        found.append(float(loss))
        if len(found) - 1 - int(np.argmin(found)) == PATIENCE:
            break
    best = int(np.argmin(found))
    return Choice(options[best], found[best]) if found[best] < constant else Choice(plain, np.nan)


def fit_linear(
    features: np.ndarray, targets: np.ndarray, patients: np.ndarray, *, exclusive: bool = False
) -> tuple[np.ndarray, np.ndarray, list[Choice]]:
    """Apply `fit_softmax` if the labels are classes, and otherwise `fit_logistic`.

    With fewer images than features, both fit the coordinates of the images in their own span: the
    penalty keeps the weights in this span, so coefficients and scores are the same.
    """
    fit = fit_softmax if exclusive else fit_logistic
    features = features.astype(np.float64)
    if (basis := _span(features)) is None:
        return fit(features, targets, patients)
    weight, bias, choices = fit(features @ basis, targets, patients)
    return weight @ basis.T, bias, choices


def fit_logistic(
    features: np.ndarray, targets: np.ndarray, patients: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[Choice]]:
    """Fit a logistic regression for each label, with a penalty of its own.

    Newton's method needs about four steps per penalty. L-BFGS would need hundreds, because the
    variances of features differ by orders of magnitude. A tolerance of 1e-6 for the gradient
    caused errors of up to 0.0006 in AUROCs.

    Args:
        features: Features [N, F].
        targets: Targets in [0, 1], [N, K], NaN where unknown. A soft target y counts as a positive
            with weight y and a negative with weight 1 - y. Values above 1 (a third class) count
            as unknown.
        patients: Patient of each image, [N].

    Returns:
        Weight [K, F], bias [K] and the chosen C of each label. Weight and bias are zero for a label
        without both classes.
    """
    targets = np.where(targets > 1, np.nan, targets)
    features, fold = features.astype(np.float64), patient_folds(targets, patients)
    weight, bias = np.zeros((targets.shape[1], features.shape[1])), np.zeros(targets.shape[1])
    choices = []
    folds = [_FoldFeatures.of(features, fold == number) for number in np.unique(fold)]
    for k, target in enumerate(targets.T.astype(np.float64)):
        logits = _out_of_fold_logits(folds, target)
        choices.append(
            choose(INVERSE_PENALTIES, logits, target=target, fold=fold, plain=PLAIN_INVERSE_PENALTY)
        )
        rows, classes, weights = _weighted_pairs(target)
        if np.unique(classes).size == 2:
            model = _newton(len(rows), features.shape[1]).set_params(C=choices[k].value)
            model.fit(features[rows], classes, sample_weight=weights)
            weight[k], bias[k] = model.coef_[0], model.intercept_[0]
    return weight, bias, choices


def fit_softmax(
    features: np.ndarray, targets: np.ndarray, patients: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[Choice]]:
    """Fit one multinomial logistic regression; arguments and result are as in `fit_logistic`.

    The targets are one-hot, with rows of NaN for images without a class. All classes share the
    penalty. A class without images gets a probability of ABSENT.
    """
    features, fold = features.astype(np.float64), patient_folds(targets, patients)
    known, classes = ~np.isnan(targets).any(axis=1), np.nan_to_num(targets).argmax(axis=1)
    num_classes = targets.shape[1]
    weight, bias = np.zeros((num_classes, features.shape[1])), np.full(num_classes, np.log(ABSENT))
    plain = Choice(PLAIN_INVERSE_PENALTY, float('nan'))
    present = [k for k in range(num_classes) if (classes[known] == k).any()]
    if len(present) < 2:
        bias[present] = 0
        return weight, bias, [plain] * num_classes

    def losses() -> Iterator[float]:
        for penalty in INVERSE_PENALTIES:
            chances = np.full(targets.shape, ABSENT)
            for number in np.unique(fold):
                in_fold, others = fold == number, known & (fold != number)
                model = _multinomial(penalty).fit(features[others], classes[others])
                chances[np.ix_(in_fold, model.classes_)] = model.predict_proba(features[in_fold])
            yield -np.log(np.maximum(chances[known, classes[known]], ABSENT)).mean()

    choice = plain
    if all(np.unique(fold[known & (classes == k)]).size > 1 for k in present):
        shares = np.bincount(classes[known])[present] / known.sum()
        options = {'constant': entr(shares).sum(), 'plain': PLAIN_INVERSE_PENALTY}
        choice = choose_lowest(INVERSE_PENALTIES, losses(), **options)
    model = _multinomial(choice.value).fit(features[known], classes[known])
    is_binary = len(present) == 2  # scikit-learn then has one row, for the second class
    weight[present] = np.concatenate([0 * model.coef_, model.coef_]) if is_binary else model.coef_
    bias[present] = [0, *model.intercept_] if is_binary else model.intercept_
    return weight, bias, [choice] * num_classes


def log_choices(
    logger: logging.Logger,
    name: str,
    choices: dict[str, Choice],
    options: Sequence[float],
) -> dict[str, float]:
    """Log the choice for each label, with a warning at an edge of the options.

    Args:
        logger: Logger of the run.
        name: Name of the classifier.
        choices: Label -> choice.
        options: Values of the hyperparameter in ascending order.

    Returns:
        Label -> chosen value.
    """
    for label, choice in choices.items():
        line = f'{name}, {label}: selected {choice.value:g}'
        if np.isnan(choice.loss):
            logger.info(f'{line}, because no value predicts more than a constant')
        elif choice.value in (options[0], options[-1]):
            logger.warning(
                f'{line} (loss {choice.loss:.4f} in {FOLDS} folds), at the edge of the grid '
                f'from {options[0]:g} to {options[-1]:g}'
            )
        else:
            logger.info(f'{line} (loss {choice.loss:.4f} in {FOLDS} folds)')
    return {label: choice.value for label, choice in choices.items()}


def _multinomial(penalty: float) -> LogisticRegression:
    return LogisticRegression(solver='newton-cg', tol=1e-6, max_iter=1000, C=penalty)


def _newton(num_images: int, num_features: int) -> LogisticRegression:
    """Return Newton's method, which does not compute the Hessian of many features and few images.

    With 636 images and 1,280 features of EfficientNet-Lite0, that takes a third of the time.
    """
    is_wide = num_images <= num_features and num_features > WIDE
    solver = 'newton-cg' if is_wide else 'newton-cholesky'
    return LogisticRegression(solver=solver, tol=1e-8, max_iter=1000, warm_start=True)


@dataclass(frozen=True)
class _FoldFeatures:
    """Features of all images [N, F] in the span of the images outside a fold, for all labels."""

    in_fold: np.ndarray  # [N] bool
    features: np.ndarray  # [N, the smaller one of F and the images outside the fold]

    @classmethod
    def of(cls, features: np.ndarray, in_fold: np.ndarray) -> '_FoldFeatures':
        basis = _span(features[~in_fold])
        return cls(in_fold, features if basis is None else features @ basis)


def _span(features: np.ndarray) -> np.ndarray | None:
    """Return an orthonormal basis [F, N] of features [N, F], or None if N is not below F."""
    num_images, num_features = features.shape
    return np.linalg.qr(features.T)[0] if num_images < num_features else None


def _out_of_fold_logits(
    folds: Sequence[_FoldFeatures], target: np.ndarray
) -> Iterator[np.ndarray]:  # [N] for each of INVERSE_PENALTIES
    pairs = [_weighted_pairs(np.where(fold.in_fold, np.nan, target)) for fold in folds]
    # Each starts from its last fit.
    models = [
        _newton(len(rows), fold.features.shape[1])
        for fold, (rows, _, _) in zip(folds, pairs, strict=True)
    ]
    for penalty in INVERSE_PENALTIES:
        logits = np.empty(len(target))
        for fold, model, (rows, classes, weights) in zip(folds, models, pairs, strict=True):
            model.set_params(C=penalty).fit(fold.features[rows], classes, sample_weight=weights)
            logits[fold.in_fold] = model.decision_function(fold.features[fold.in_fold])
        yield logits


def _weighted_pairs(target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, classes (0 or 1) and weights. A soft target gives one entry for each class."""
    positive, negative = np.flatnonzero(target > 0), np.flatnonzero(target < 1)  # False for NaN
    rows = np.concatenate([positive, negative])
    weights = np.concatenate([target[positive], 1 - target[negative]])
    return rows, np.repeat([1, 0], [positive.size, negative.size]), weights
