"""The essays as a run's folds need them: the one place that asks whether an encoder or features read them. No torch."""

from dataclasses import replace

import pandas as pd

from fb3.data.tokens import Encoded, encode_essays, item_frames
from fb3.models.flops import encoder_flops
from fb3.prediction.estimators.feature_inputs import FeatureInputs, Tokenise, encode_features, feature_flops
from fb3.prediction.frame_vectors import with_vectors
from fb3.runs.run_folder import Member
from fb3.system.file_names import ENCODER, image_encoder_folder


def encode(member: Member, essays: pd.DataFrame, tokenise: Tokenise = encode_essays) -> Encoded | FeatureInputs:
    """The essays as a run reads them: tokens of its encoder, or the inputs of its features, and vectors of pictures."""
    return encode_read(member, with_vectors(essays, member.recipe, image_encoder_folder(member.path)), tokenise)


def encode_read(member: Member, essays: pd.DataFrame, tokenise: Tokenise = encode_essays) -> Encoded | FeatureInputs:
    """The essays as of `encode`, where vectors stand in the place of pictures already."""
    if member.recipe.estimator:
        return encode_features(member.path, member.recipe, essays, tokenise)
    return tokenise(essays, member.path / ENCODER, member.recipe.data)


def count_inputs(member: Member, essays: pd.DataFrame) -> Encoded | FeatureInputs:
    """The essays as `member_flops` needs them: as of `encode`, but pictures are counted and not read."""
    recipe = member.recipe
    if not recipe.data.image_encoder:
        return encode(member, essays)
    texts = recipe.model_copy(update={"data": recipe.data.model_copy(update={"frames": None})})
    if recipe.estimator:
        return encode_features(member.path, texts, essays, encode_essays)
    return replace(encode_essays(essays, member.path / ENCODER, texts.data), frames=item_frames(essays, recipe.data))


def member_flops(member: Member, encoded: Encoded | FeatureInputs) -> float:
    """FLOPs of a run's encoders for all essays: a fold's, or of all folds where they share their vectors."""
    if isinstance(encoded, FeatureInputs):
        return feature_flops(member.path, encoded)
    flops = float(encoder_flops(member.path / ENCODER, encoded).sum())
    if member.recipe.optimizer.image_rate is None:
        return flops
    from fb3.models.picture_flops import picture_flops

    return flops + float(encoded.frames.counts.sum()) * picture_flops(image_encoder_folder(member.path))


def passes(member: Member, encoded: Encoded | FeatureInputs) -> int:
    """How often the essays go through a run's encoders: once a fold, or once for all folds that share their vectors."""
    return 1 if shares_vectors(encoded) else len(member.folds)


def shares_vectors(encoded: Encoded | FeatureInputs) -> bool:
    """Whether the first fold computes what all folds of the run use."""
    return isinstance(encoded, FeatureInputs) and encoded.shared
