"""The reference trainer: conversations about documents to token ids, labels, tiles and losses."""
