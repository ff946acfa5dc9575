"""Cleaning: from documents to those worth learning from, one stage a file, all of them off unless the recipe asks.

    documents ─► batches ─► stages, in processes of their own ─► kept text on disk ─► duplicates, over all documents ─► texts

- `stages.py` has the ordered table of what is done to one document; each stage is a function that gives the document
  back, perhaps mended, or says why it is dropped.
- `batches.py` divides documents among processes, and keeps what they did: a batch that is finished is never done again.
- `duplicates.py` compares all documents, with hashes that lie on disk, in memory that a setting bounds.
- `clean.py` puts these together into a source of documents; `report.py` draws what happened.

What is kept does not depend on the number of processes, on memory, or on interruptions.
"""
