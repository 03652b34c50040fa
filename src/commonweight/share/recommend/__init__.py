"""Recommenders: tables of embeddings whose features, users and items read common rows."""

from .clustered import Clustered, clusters, numbered
from .model import Recommender, auc, train
from .unified import Feature, Unified

__all__ = ["Clustered", "Feature", "Recommender", "Unified", "auc", "clusters", "numbered", "train"]
