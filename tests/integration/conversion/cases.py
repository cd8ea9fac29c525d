"""The table of scikit-learn models that the conversion is tested on: real data, cheap estimators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import (
    calibration,
    cluster,
    compose,
    covariance,
    discriminant_analysis,
    dummy,
    ensemble,
    feature_extraction,
    feature_selection,
    gaussian_process,
    impute,
    isotonic,
    kernel_ridge,
    linear_model,
    mixture,
    model_selection,
    multioutput,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)

from tests.integration.conversion.rows import (
    NUMBERS,
    TEXTS,
    Rows,
    air_times,
    cancer,
    counts,
    diabetes,
    flights,
    iris,
    names,
    routes,
    wine,
)


@dataclass(frozen=True)
class Case:
    """A model of the table.

    Attributes:
        make: makes the untrained model.
        data: gives inputs and answers to train on.
        method: the method that is served.
        form: the form that it must get; a change in either direction is a finding.
        why: a part of the reason that must be stated when the form is pyfunc.
    """

    name: str
    make: Callable[[], Any]
    data: Callable[[], Rows]
    method: str = "predict"
    form: str = "onnx"
    why: str = ""


# --- pipelines ---------------------------------------------------------------------------------------------


def mixed(model: Any, texts: Any = None, numbers: Any = "passthrough", *, rest: bool = True) -> Any:
    """A pipeline over the flights' columns."""
    texts = texts or preprocessing.OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    parts = [("texts", texts, TEXTS)] + ([("numbers", numbers, NUMBERS)] if rest else [])
    return pipeline.make_pipeline(compose.ColumnTransformer(parts), model)


def scaled(model: Any) -> Any:
    """A scaler in front of a model."""
    return pipeline.make_pipeline(preprocessing.StandardScaler(), model)


def _filled() -> Any:
    return pipeline.make_pipeline(impute.SimpleImputer(strategy="median"), preprocessing.StandardScaler())


def _add_one(values: Any) -> Any:
    return values + 1.0


def _ordinal(**settings: Any) -> Any:
    return preprocessing.OrdinalEncoder(handle_unknown="use_encoded_value", **settings)


def _words() -> Any:
    return compose.ColumnTransformer(
        [("words", feature_extraction.text.TfidfVectorizer(), "route"), ("rest", "passthrough", ["distance"])]
    )


HIST = ensemble.HistGradientBoostingClassifier

CASES = (
    # linear
    Case("LogisticRegression scaled", lambda: scaled(linear_model.LogisticRegression()), cancer),
    Case(
        "LogisticRegression proba", lambda: scaled(linear_model.LogisticRegression()), cancer, "predict_proba"
    ),
    Case("LogisticRegression names", lambda: linear_model.LogisticRegression(max_iter=500), iris),
    Case("LogisticRegression array", lambda: scaled(linear_model.LogisticRegression()), wine),
    Case("SGDClassifier", lambda: scaled(linear_model.SGDClassifier(random_state=0)), cancer),
    Case("RidgeClassifier", linear_model.RidgeClassifier, iris),
    Case("Perceptron", lambda: scaled(linear_model.Perceptron(random_state=0)), wine),
    Case("LinearRegression", linear_model.LinearRegression, diabetes),
    Case(
        "Ridge of polynomials",
        lambda: pipeline.make_pipeline(preprocessing.PolynomialFeatures(2), linear_model.Ridge()),
        diabetes,
    ),
    Case("ElasticNet", lambda: linear_model.ElasticNet(alpha=0.01), diabetes),
    Case("BayesianRidge", linear_model.BayesianRidge, diabetes),
    Case("PoissonRegressor", lambda: linear_model.PoissonRegressor(max_iter=50), diabetes),
    Case("HuberRegressor", lambda: linear_model.HuberRegressor(max_iter=500), diabetes),
    # trees
    Case("DecisionTreeClassifier", lambda: tree.DecisionTreeClassifier(max_depth=6, random_state=0), counts),
    Case(
        "RandomForestClassifier",
        lambda: ensemble.RandomForestClassifier(15, random_state=0),
        cancer,
        "predict_proba",
    ),
    Case(
        "RandomForestClassifier scaled",
        lambda: scaled(ensemble.RandomForestClassifier(15, random_state=0)),
        cancer,
        "predict_proba",
    ),
    Case("ExtraTreesClassifier", lambda: ensemble.ExtraTreesClassifier(15, random_state=0), iris),
    Case("RandomForestRegressor", lambda: ensemble.RandomForestRegressor(15, random_state=0), diabetes),
    Case(
        "GradientBoosting scaled",
        lambda: scaled(ensemble.GradientBoostingClassifier(n_estimators=30)),
        cancer,
        "predict_proba",
    ),
    Case("GradientBoosting 3 classes", lambda: ensemble.GradientBoostingClassifier(n_estimators=10), iris),
    Case("GradientBoostingRegressor", lambda: ensemble.GradientBoostingRegressor(n_estimators=30), diabetes),
    Case("HistGradientBoosting scaled", lambda: scaled(HIST(max_iter=20)), cancer, "predict_proba"),
    Case("HistGradientBoosting whole numbers", lambda: HIST(max_iter=5), counts),
    Case(
        "HistGradientBoosting categories",
        lambda: HIST(max_iter=20, categorical_features=[3, 12]),
        counts,
        "predict_proba",
    ),
    Case(
        "HistGradientBoostingRegressor",
        lambda: scaled(ensemble.HistGradientBoostingRegressor(max_iter=20)),
        diabetes,
    ),
    Case(
        "HistGradientBoostingRegressor gamma",
        lambda: ensemble.HistGradientBoostingRegressor(max_iter=20, loss="gamma"),
        diabetes,
    ),
    Case("AdaBoostClassifier", lambda: ensemble.AdaBoostClassifier(n_estimators=10, random_state=0), cancer),
    Case("BaggingClassifier", lambda: ensemble.BaggingClassifier(n_estimators=5, random_state=0), iris),
    Case(
        "IsolationForest",
        lambda: ensemble.IsolationForest(n_estimators=20, random_state=0),
        cancer,
        form="pyfunc",
        why="missing values",
    ),
    # other classifiers and regressors
    Case("GaussianNB", naive_bayes.GaussianNB, iris, "predict_proba"),
    Case("MultinomialNB", naive_bayes.MultinomialNB, counts),
    Case("KNeighborsClassifier", lambda: scaled(neighbors.KNeighborsClassifier()), iris),
    Case("KNeighborsRegressor", neighbors.KNeighborsRegressor, diabetes),
    Case("SVC", lambda: scaled(svm.SVC()), cancer),
    Case("LinearSVC", lambda: scaled(svm.LinearSVC()), cancer),
    Case("SVR", lambda: scaled(svm.SVR()), diabetes),
    Case(
        "MLPClassifier",
        lambda: scaled(neural_network.MLPClassifier((16,), max_iter=400, random_state=0, solver="lbfgs")),
        iris,
        "predict_proba",
    ),
    Case(
        "MLPRegressor",
        lambda: scaled(
            neural_network.MLPRegressor(
                hidden_layer_sizes=(4,), max_iter=3000, random_state=0, solver="lbfgs", alpha=10.0
            )
        ),
        diabetes,
    ),
    Case("LinearDiscriminantAnalysis", discriminant_analysis.LinearDiscriminantAnalysis, iris),
    Case(
        "QuadraticDiscriminantAnalysis",
        discriminant_analysis.QuadraticDiscriminantAnalysis,
        iris,
        form="pyfunc",
        why="shape",
    ),
    Case(
        "GaussianProcessRegressor",
        lambda: gaussian_process.GaussianProcessRegressor(alpha=1.0, optimizer=None),
        diabetes,
    ),
    Case("KernelRidge", kernel_ridge.KernelRidge, diabetes, form="pyfunc", why="no converter"),
    Case("DummyClassifier", dummy.DummyClassifier, iris, form="pyfunc", why="no converter"),
    Case(
        "VotingClassifier of trees",
        lambda: ensemble.VotingClassifier(
            [
                ("a", tree.DecisionTreeClassifier(max_depth=4)),
                ("b", linear_model.LogisticRegression(max_iter=500)),
            ],
            voting="soft",
        ),
        iris,
        form="pyfunc",
        why="float64: cannot be made",
    ),
    Case(
        "VotingClassifier",
        lambda: ensemble.VotingClassifier(
            [("a", linear_model.LogisticRegression(max_iter=500)), ("b", naive_bayes.GaussianNB())],
            voting="soft",
        ),
        iris,
    ),
    Case(
        "StackingClassifier",
        lambda: ensemble.StackingClassifier(
            [("a", tree.DecisionTreeClassifier(max_depth=3)), ("b", naive_bayes.GaussianNB())], cv=2
        ),
        iris,
    ),
    Case(
        "CalibratedClassifierCV",
        lambda: calibration.CalibratedClassifierCV(naive_bayes.GaussianNB(), cv=2),
        iris,
        "predict_proba",
    ),
    Case(
        "GridSearchCV",
        lambda: model_selection.GridSearchCV(
            scaled(linear_model.LogisticRegression()), {"logisticregression__C": [0.1, 1.0]}, cv=2
        ),
        cancer,
    ),
    Case(
        "MultiOutputRegressor",
        lambda: multioutput.MultiOutputRegressor(linear_model.Ridge()),
        lambda: (diabetes()[0], np.column_stack([diabetes()[1], diabetes()[1] / 2])),
    ),
    # clusters, outliers, transformers
    Case("KMeans", lambda: scaled(cluster.KMeans(4, n_init=1, random_state=0)), iris),
    Case("GaussianMixture", lambda: mixture.GaussianMixture(3, random_state=0), iris),
    Case("OneClassSVM", lambda: scaled(svm.OneClassSVM()), iris),
    Case(
        "EllipticEnvelope",
        lambda: covariance.EllipticEnvelope(random_state=0),
        iris,
        form="pyfunc",
        why="no converter",
    ),
    Case(
        "SelectKBest",
        lambda: pipeline.make_pipeline(
            feature_selection.SelectKBest(k=5), linear_model.LogisticRegression(max_iter=3000)
        ),
        cancer,
    ),
    # mixed columns
    Case("mixed, one-hot and histogram", lambda: mixed(HIST(max_iter=20)), flights, "predict_proba"),
    Case("mixed, one-hot and histogram labels", lambda: mixed(HIST(max_iter=20)), flights),
    Case(
        "mixed, ordinal and histogram",
        lambda: mixed(HIST(max_iter=20), _ordinal(unknown_value=-1)),
        flights,
        "predict_proba",
    ),
    Case(
        "mixed, ordinal with missing code",
        lambda: mixed(HIST(max_iter=20), _ordinal(unknown_value=-1, encoded_missing_value=-2)),
        flights,
        "predict_proba",
    ),
    Case(
        "mixed, ordinal as categories",
        lambda: mixed(HIST(max_iter=20, categorical_features=[0, 1]), _ordinal(unknown_value=np.nan)),
        flights,
        "predict_proba",
    ),
    Case(
        "mixed, infrequent and logistic",
        lambda: mixed(
            linear_model.LogisticRegression(max_iter=300),
            preprocessing.OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=60, drop="first"),
            _filled(),
        ),
        flights,
        "predict_proba",
    ),
    Case(
        "mixed, imputed texts and forest",
        lambda: mixed(
            ensemble.RandomForestClassifier(15, max_depth=8, random_state=0),
            pipeline.make_pipeline(
                impute.SimpleImputer(strategy="most_frequent"),
                preprocessing.OneHotEncoder(handle_unknown="ignore"),
            ),
            _filled(),
        ),
        flights,
        "predict_proba",
    ),
    Case(
        "mixed, gradient boosting of air time",
        lambda: mixed(ensemble.GradientBoostingRegressor(n_estimators=20), None, _filled()),
        air_times,
    ),
    Case(
        "mixed, target encoder",
        lambda: mixed(
            linear_model.LogisticRegression(max_iter=300),
            preprocessing.TargetEncoder(),
            _filled(),
        ),
        flights,
        "predict_proba",
    ),
    Case(
        "mixed, texts only",
        lambda: mixed(linear_model.LogisticRegression(), None, _filled(), rest=False),
        flights,
    ),
    Case(
        "identifiers beyond 2**24",
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer(
                [("id", preprocessing.OneHotEncoder(handle_unknown="ignore"), ["id"])],
                remainder="passthrough",
            ),
            linear_model.LogisticRegression(max_iter=500),
        ),
        names,
    ),
    Case("identifiers in trees", lambda: HIST(max_iter=10), names, "predict_proba"),
    Case(
        "words in several scripts",
        lambda: pipeline.make_pipeline(_words(), linear_model.LogisticRegression(max_iter=500)),
        routes,
        "predict_proba",
    ),
    Case(
        "hashed words",
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer(
                [("w", feature_extraction.text.HashingVectorizer(n_features=64), "route")]
            ),
            linear_model.LogisticRegression(),
        ),
        routes,
        form="pyfunc",
        why="no converter",
    ),
    Case(
        "Python function",
        lambda: pipeline.make_pipeline(preprocessing.FunctionTransformer(_add_one), linear_model.Ridge()),
        diabetes,
        form="pyfunc",
        why="Python function",
    ),
    Case(
        "IsotonicRegression",
        lambda: isotonic.IsotonicRegression(out_of_bounds="clip"),
        lambda: (diabetes()[0][["bmi"]], diabetes()[1]),
        form="pyfunc",
        why="no converter",
    ),
    Case(
        "KBinsDiscretizer",
        lambda: pipeline.make_pipeline(
            preprocessing.KBinsDiscretizer(5, encode="ordinal", strategy="uniform"),
            linear_model.Ridge(),
        ),
        diabetes,
        form="pyfunc",
        why="float64: cannot be made",
    ),
    Case(
        "KNNImputer",
        lambda: pipeline.make_pipeline(impute.KNNImputer(), linear_model.Ridge()),
        diabetes,
        form="pyfunc",
        why="missing values",
    ),
)
