"""The table of XGBoost and LightGBM models that the conversion is tested on: real data, the traps of both."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import xgboost
from sklearn import pipeline, preprocessing

from tests.integration.conversion.cases import Case, mixed, scaled
from tests.integration.conversion.rows import (
    NUMBERS,
    Rows,
    cancer,
    counts,
    diabetes,
    flights,
    flights_table,
    iris,
    wine,
)

QUIET: dict[str, Any] = {"n_estimators": 12, "n_jobs": 1}


def iris_codes() -> Rows:
    """The flowers with their class as a number, the only form that XGBoost takes."""
    inputs, names = iris()
    return inputs, np.unique(names, return_inverse=True)[1]


def gusts() -> Rows:
    """Flights with missing numbers; late or not."""
    inputs, late = flights()
    return inputs[NUMBERS].astype(float), late.astype("int64")


def carriers() -> Rows:
    """Flights with the carrier and the destination as codes, and missing numbers."""
    table = flights_table()
    codes = {name: pd.Categorical(table[name]).codes.astype(float) for name in ("carrier", "dest")}
    # A missing text has the code -1, which no library takes for a category.
    codes["carrier"][codes["carrier"] < 0] = np.nan
    frame = pd.DataFrame(codes | {name: table[name].astype(float) for name in NUMBERS})
    return frame, (table["arr_delay"] > 15).to_numpy().astype("int64")


def positive() -> Rows:
    """The patients with a positive number as answer, in hundreds."""
    inputs, answers = diabetes()
    return inputs, answers / 100


class _Trained:
    """A native booster behind scikit-learn's `fit`, as the table of cases wants it."""

    def __init__(self, library: str, rounds: int = 12, early: int = 0, **settings: Any) -> None:
        self.library, self.rounds, self.early, self.settings = library, rounds, early, settings

    def fit(self, inputs: Any, answers: Any) -> Any:
        """The trained booster itself."""
        categorical = self.settings.pop("categorical", [])
        half = len(answers) // 2
        if self.library == "xgboost":
            types = ["c" if column in categorical else "q" for column in range(np.shape(inputs)[1])]
            data = xgboost.DMatrix(
                inputs, answers, feature_types=types if categorical else None, enable_categorical=True
            )
            rest = {"evals": [(data.slice(range(half)), "rest")], "early_stopping_rounds": self.early}
            return xgboost.train(
                {"nthread": 1, **self.settings},
                data,
                self.rounds,
                verbose_eval=False,
                **(rest if self.early else {}),
            )
        data = lightgbm.Dataset(inputs, answers, categorical_feature=categorical or "auto")
        quiet = {"verbose": -1, "num_threads": 1, "deterministic": True}
        return lightgbm.train(quiet | self.settings, data, self.rounds)


class _Stopped:
    """A wrapper that stops early, on rows that it does not learn from."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def fit(self, inputs: Any, answers: Any) -> Any:
        half = len(answers) // 2
        return self.model.fit(
            inputs[:half], answers[:half], eval_set=[(inputs[half:], answers[half:])], verbose=False
        )


def xgb(**settings: Any) -> Any:
    return xgboost.XGBClassifier(**(QUIET | settings))


def xgb_number(**settings: Any) -> Any:
    return xgboost.XGBRegressor(**(QUIET | settings))


def lgb(**settings: Any) -> Any:
    return lightgbm.LGBMClassifier(**(QUIET | {"verbose": -1, "min_child_samples": 5} | settings))


def lgb_number(**settings: Any) -> Any:
    return lightgbm.LGBMRegressor(**(QUIET | {"verbose": -1, "min_child_samples": 5} | settings))


XGBOOST = (
    Case("XGBClassifier", xgb, cancer),
    Case("XGBClassifier 3 classes", xgb, iris_codes),
    Case("XGBClassifier array", xgb, wine),
    Case("XGBClassifier whole numbers", lambda: xgb(n_estimators=4), counts),
    Case("XGBClassifier with missing numbers", xgb, gusts),
    Case("XGBClassifier with another missing value", lambda: xgb(missing=0.0), gusts),
    Case(
        "XGBClassifier with categories",
        lambda: xgb(
            enable_categorical=True, feature_types=["c", "c"] + ["q"] * len(NUMBERS), max_cat_to_onehot=2
        ),
        carriers,
    ),
    Case(
        "XGBClassifier stopped early", lambda: _Stopped(xgb(n_estimators=60, early_stopping_rounds=2)), gusts
    ),
    Case("XGBRFClassifier", lambda: xgboost.XGBRFClassifier(n_estimators=8, n_jobs=1), iris_codes),
    Case("XGBClassifier dart", lambda: xgb(booster="dart", rate_drop=0.5), gusts),
    Case("XGBRegressor", xgb_number, diabetes),
    Case("XGBRegressor base_score", lambda: xgb_number(base_score=1000.0), diabetes),
    Case("XGBRegressor poisson", lambda: xgb_number(objective="count:poisson"), positive),
    Case("XGBRegressor tweedie", lambda: xgb_number(objective="reg:tweedie"), positive),
    Case("XGBRegressor gamma", lambda: xgb_number(objective="reg:gamma"), positive),
    Case("XGBRegressor absolute error", lambda: xgb_number(objective="reg:absoluteerror"), diabetes),
    Case(
        "XGBRegressor quantiles",
        lambda: xgb_number(objective="reg:quantileerror", quantile_alpha=[0.1, 0.9]),
        diabetes,
    ),
    Case(
        "XGBRegressor two answers",
        xgb_number,
        lambda: (diabetes()[0], np.column_stack([diabetes()[1], diabetes()[1] / 2])),
    ),
    Case(
        "XGBRegressor trees of two answers",
        lambda: xgb_number(multi_strategy="multi_output_tree"),
        lambda: (diabetes()[0], np.column_stack([diabetes()[1], diabetes()[1] / 2])),
        form="pyfunc",
        why="multi_output_tree",
    ),
    Case(
        "XGBRegressor linear", lambda: xgb_number(booster="gblinear"), diabetes, form="pyfunc", why="gblinear"
    ),
    Case("xgboost.Booster binary", lambda: _Trained("xgboost", objective="binary:logistic"), gusts),
    Case("xgboost.Booster raw", lambda: _Trained("xgboost", objective="binary:logitraw"), gusts),
    Case("xgboost.Booster hinge", lambda: _Trained("xgboost", objective="binary:hinge"), gusts),
    Case(
        "xgboost.Booster 3 classes",
        lambda: _Trained("xgboost", objective="multi:softprob", num_class=3),
        iris_codes,
    ),
    Case(
        "xgboost.Booster labels",
        lambda: _Trained("xgboost", objective="multi:softmax", num_class=3),
        iris_codes,
    ),
    Case(
        "xgboost.Booster stopped early",
        lambda: _Trained("xgboost", 60, 2, objective="binary:logistic", eta=1.0),
        gusts,
    ),
    Case(
        "xgboost.Booster survival",
        lambda: _Trained("xgboost", objective="survival:cox"),
        positive,
    ),
)

LIGHTGBM = (
    Case("LGBMClassifier", lgb, cancer),
    Case("LGBMClassifier names", lgb, iris),
    Case("LGBMClassifier array", lgb, wine),
    Case("LGBMClassifier whole numbers", lambda: lgb(n_estimators=4), counts),
    Case("LGBMClassifier with missing numbers", lgb, gusts),
    Case("LGBMClassifier zero as missing", lambda: lgb(zero_as_missing=True), gusts),
    Case("LGBMClassifier without missing", lambda: lgb(use_missing=False), gusts),
    Case("LGBMClassifier one against all", lambda: lgb(objective="multiclassova"), iris),
    Case(
        "LGBMClassifier forest", lambda: lgb(boosting_type="rf", bagging_freq=1, bagging_fraction=0.6), gusts
    ),
    Case("LGBMClassifier dart", lambda: lgb(boosting_type="dart"), gusts),
    Case("LGBMRegressor", lgb_number, diabetes),
    Case("LGBMRegressor poisson", lambda: lgb_number(objective="poisson"), positive),
    Case("LGBMRegressor tweedie", lambda: lgb_number(objective="tweedie"), positive),
    Case("LGBMRegressor quantile", lambda: lgb_number(objective="quantile", alpha=0.9), diabetes),
    Case("LGBMRegressor of roots", lambda: lgb_number(reg_sqrt=True), positive),
    Case(
        "LGBMRegressor linear leaves",
        lambda: lgb_number(linear_tree=True),
        diabetes,
        form="pyfunc",
        why="linear_tree",
    ),
    Case("lightgbm.Booster binary", lambda: _Trained("lightgbm", objective="binary"), gusts),
    Case(
        "lightgbm.Booster with categories",
        lambda: _Trained(
            "lightgbm", objective="binary", categorical=[0, 1], min_data_per_group=5, cat_smooth=1
        ),
        carriers,
    ),
    Case(
        "lightgbm.Booster 3 classes",
        lambda: _Trained("lightgbm", objective="multiclass", num_class=3),
        iris_codes,
    ),
    Case("lightgbm.Booster cross entropy", lambda: _Trained("lightgbm", objective="cross_entropy"), gusts),
)

PIPELINES = (
    Case("XGBClassifier with another missing value, pickled", lambda: xgb(missing=0.0), gusts),
    Case("scaled XGBClassifier", lambda: scaled(xgb()), cancer, "predict_proba"),
    Case("mixed, one-hot and XGBoost", lambda: mixed(xgb()), flights, "predict_proba"),
    Case("mixed, one-hot and LightGBM", lambda: mixed(lgb()), flights),
    Case(
        "scaled LGBMRegressor",
        lambda: pipeline.make_pipeline(preprocessing.StandardScaler(), lgb_number()),
        diabetes,
    ),
    Case(
        "XGBoost without trees in a pipeline",
        lambda: scaled(xgb_number(booster="gblinear")),
        diabetes,
        form="pyfunc",
        why="gblinear",
    ),
)
"""Pipelines of scikit-learn that hold a booster; logged with MLflow's sklearn flavor."""
