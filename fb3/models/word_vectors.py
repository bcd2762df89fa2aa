"""Static word vectors as an encoder without layers: a word's state is its row of a table, whatever stands beside it.

transformers knows the model once this module is imported; its folder is a backbone like any other, and holds no code.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class WordVectorsConfig(PretrainedConfig):
    """Sizes of the table: `vocab_size` words of `hidden_size` numbers each; `embedding_dropout` drops numbers."""

    model_type = "word_vectors"

    def __init__(
        self, vocab_size: int = 2, hidden_size: int = 1, embedding_dropout: float = 0.0, **others: Any
    ) -> None:
        self.vocab_size, self.hidden_size, self.embedding_dropout = vocab_size, hidden_size, embedding_dropout
        self.num_hidden_layers = 0
        super().__init__(**{"pad_token_id": 0, **others})


class WordVectorsModel(PreTrainedModel):
    """Token ids (B, T) to their words' vectors (B, T, D). There is no limit to a text's length."""

    config_class = WordVectorsConfig
    base_model_prefix = "word_vectors"

    def __init__(self, config: WordVectorsConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings = value

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        states = self.dropout(self.embeddings(input_ids))
        return BaseModelOutput(last_hidden_state=states, hidden_states=(states,))


AutoConfig.register(WordVectorsConfig.model_type, WordVectorsConfig, exist_ok=True)
AutoModel.register(WordVectorsConfig, WordVectorsModel, exist_ok=True)
