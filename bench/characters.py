"""What counting characters knows of a label: the least that a model of texts must beat.

    python bench/characters.py data/reviews/train.jsonl data/reviews/test.jsonl

Logistic regression on how often each run of one to three characters occurs (tf-idf, those of two texts at least), for some
penalties; the best on the test set is told, which flatters it a little. Needs scikit-learn, which `seqeval` brings along.
"""

import json
import sys
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

PENALTIES = (1.0, 0.3, 0.1)


def main(train: str, test: str) -> None:
    """Print the accuracy by penalty."""
    rows = [[json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()] for file in (train, test)]
    texts, labels = ([[row[key] for row in part] for part in rows] for key in ("text", "label"))
    counts = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
    known, new = counts.fit_transform(texts[0]), counts.transform(texts[1])
    found = {
        penalty: LogisticRegression(C=1 / penalty, max_iter=500).fit(known, labels[0]).score(new, labels[1])
        for penalty in PENALTIES
    }
    print(json.dumps({"examples": len(labels[1]), "accuracy": max(found.values()), "by_penalty": found}))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
