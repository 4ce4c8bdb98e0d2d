"""What the notes of a sample volume say: a bilingual notebook of someone who runs small services.

Both languages are in every note, because full-text search, byte counts and HTML treat them
differently. `{}` stands for a number.
"""

from __future__ import annotations

from typing import NamedTuple


class Topic(NamedTuple):
    """Titles, tags and sentences that belong together."""

    tags: list[str]
    titles: tuple[str, ...]
    sentences: tuple[str, ...]


_COMMON = (
    "詳しくは前回のメモを参照。",
    "Follow up on this within {} days.",
    "次回までに{}件の項目を確認すること。",
    "I should write down why this worked, and not only that it did.",
    "あとで整理してリンクを張る。",
)

TOPICS = (
    Topic(
        ["開発", "python"],
        ("非同期処理のメモ", "Async patterns", "テストの書き方", "Refactoring notes"),
        (
            "asyncioのタスクは参照を保持しないとガベージコレクションされる。",
            "A queue with {} workers was enough; more only added contention.",
            "例外は握りつぶさず、境界で一度だけ処理する。",
            "The test suite now takes {} seconds, most of it in fixtures.",
            *_COMMON,
        ),
    ),
    Topic(
        ["運用", "railway"],
        ("デプロイの記録", "Volume usage review", "障害のふりかえり", "On-call notes"),
        (
            "デプロイ後にボリュームのマウントを確認した。",
            "Disk usage went up by {} MB since last week.",
            "再起動のあとも会話の履歴は残っていた。",
            "The restart took {} seconds and no message was lost.",
            *_COMMON,
        ),
    ),
    Topic(
        ["アイデア", "pkm"],
        ("知識管理の考え", "Linking notes", "朝の思いつき", "Zettelkasten practice"),
        (
            "ノートは小さく、一つの考えに一つ。",
            "Links matter more than folders once there are {} notes.",
            "声で残したメモは、その日のうちに要約する。",
            "Searching by meaning found a note from {} weeks ago.",
            *_COMMON,
        ),
    ),
    Topic(
        ["読書", "learning"],
        ("読書メモ", "Chapter summary", "論文の要点", "Course notes"),
        (
            "第{}章では、小さな変更を積み重ねる方法が述べられている。",
            "The author's main claim rests on {} case studies.",
            "図を描き直すと、理解していない所がわかる。",
            "Worth reading again after trying it in practice.",
            *_COMMON,
        ),
    ),
    Topic(
        ["会議", "team"],
        ("定例会議の議事録", "Weekly sync", "企画の相談", "Retrospective"),
        (
            "参加者は{}名。決定事項は下に記す。",
            "We agreed to ship the smaller version first.",
            "担当と期限をその場で決めた。",
            "Open questions: {}; owners are named in the tracker.",
            *_COMMON,
        ),
    ),
    Topic(
        ["生活", "health"],
        ("週末の記録", "Running log", "料理のレシピ", "Travel plan"),
        (
            "朝に{}分走った。膝の調子は良い。",
            "Slept well; kept the phone out of the bedroom.",
            "味噌は最後に入れると香りが残る。",
            "The train takes {} minutes and does not need a reservation.",
            *_COMMON,
        ),
    ),
)
