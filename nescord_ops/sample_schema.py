"""NescordBot's database schema, as its eight migrations and its sync manager leave it.

Source: NescordBot of September 2025. `SEARCH` is what migration 5 means to make; on a real bot it
probes a function that SQLite does not have, so the search table is missing there.
"""

from __future__ import annotations

MIGRATIONS = (
    "create_knowledge_notes",
    "create_note_links",
    "create_token_usage",
    "extend_transcriptions",
    "create_fts5_index",
    "create_search_history",
    "create_note_history",
    "create_review_cache",
)

SCHEMA = """
CREATE TABLE schema_migrations (
    version INTEGER PRIMARY KEY, name TEXT NOT NULL, description TEXT NOT NULL,
    checksum TEXT NOT NULL, applied_at DATETIME DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE kv_store (
    key TEXT PRIMARY KEY, value TEXT NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE knowledge_notes (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, content TEXT NOT NULL, tags TEXT, source_type TEXT,
    source_id TEXT, user_id TEXT NOT NULL, channel_id TEXT, guild_id TEXT,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP, updated_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    vector_updated_at DATETIME);
CREATE INDEX idx_knowledge_notes_user_id ON knowledge_notes(user_id);
CREATE INDEX idx_knowledge_notes_created_at ON knowledge_notes(created_at);
CREATE INDEX idx_knowledge_notes_source_type ON knowledge_notes(source_type);
CREATE TABLE note_links (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    from_note_id TEXT NOT NULL REFERENCES knowledge_notes(id),
    to_note_id TEXT NOT NULL REFERENCES knowledge_notes(id),
    link_type TEXT DEFAULT 'reference', created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    UNIQUE(from_note_id, to_note_id));
CREATE INDEX idx_note_links_from_note_id ON note_links(from_note_id);
CREATE INDEX idx_note_links_to_note_id ON note_links(to_note_id);
CREATE TABLE note_history (
    id INTEGER PRIMARY KEY AUTOINCREMENT, note_id TEXT NOT NULL REFERENCES knowledge_notes(id),
    title_before TEXT, content_before TEXT, tags_before TEXT,
    title_after TEXT, content_after TEXT, tags_after TEXT,
    user_id TEXT NOT NULL, edit_type TEXT DEFAULT 'update',
    timestamp DATETIME DEFAULT CURRENT_TIMESTAMP);
CREATE INDEX idx_note_history_note_id ON note_history(note_id);
CREATE TABLE transcriptions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL, audio_file TEXT, transcript TEXT,
    summary TEXT, timestamp DATETIME DEFAULT CURRENT_TIMESTAMP, note_id TEXT, tags TEXT,
    links TEXT);
CREATE INDEX idx_transcriptions_note_id ON transcriptions(note_id);
CREATE TABLE search_history (
    id TEXT PRIMARY KEY, user_id TEXT NOT NULL, query TEXT NOT NULL,
    results_count INTEGER NOT NULL DEFAULT 0, execution_time_ms REAL,
    timestamp DATETIME DEFAULT CURRENT_TIMESTAMP);
CREATE INDEX idx_search_history_user_time ON search_history(user_id, timestamp DESC);
CREATE TABLE review_cache (
    id INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL, period TEXT NOT NULL,
    content TEXT NOT NULL, created_at DATETIME DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE token_usage (
    id INTEGER PRIMARY KEY AUTOINCREMENT, provider TEXT NOT NULL, model TEXT NOT NULL,
    input_tokens INTEGER NOT NULL DEFAULT 0, output_tokens INTEGER NOT NULL DEFAULT 0,
    cost_usd REAL NOT NULL DEFAULT 0, user_id TEXT, request_type TEXT,
    timestamp DATETIME DEFAULT CURRENT_TIMESTAMP, metadata TEXT);
CREATE INDEX idx_token_usage_timestamp ON token_usage(timestamp);
CREATE INDEX idx_token_usage_provider ON token_usage(provider);
CREATE TABLE sync_metadata (
    note_id TEXT PRIMARY KEY REFERENCES knowledge_notes(id), last_synced_at DATETIME,
    sync_status TEXT DEFAULT 'pending', chromadb_doc_id TEXT, embedding_hash TEXT,
    retry_count INTEGER DEFAULT 0, last_error TEXT,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP, updated_at DATETIME DEFAULT CURRENT_TIMESTAMP);
CREATE INDEX idx_sync_metadata_status ON sync_metadata(sync_status);
CREATE INDEX idx_sync_metadata_synced_at ON sync_metadata(last_synced_at);
CREATE INDEX idx_sync_metadata_retry ON sync_metadata(retry_count);
"""

SEARCH = """
CREATE VIRTUAL TABLE knowledge_notes_fts USING fts5(
    title, content, tags, content=knowledge_notes, content_rowid=rowid, tokenize='unicode61');
INSERT INTO knowledge_notes_fts(knowledge_notes_fts) VALUES ('rebuild');
CREATE TRIGGER knowledge_notes_fts_insert AFTER INSERT ON knowledge_notes BEGIN
    INSERT INTO knowledge_notes_fts(rowid, title, content, tags)
    VALUES (new.rowid, new.title, new.content, new.tags);
END;
CREATE TRIGGER knowledge_notes_fts_delete AFTER DELETE ON knowledge_notes BEGIN
    INSERT INTO knowledge_notes_fts(knowledge_notes_fts, rowid, title, content, tags)
    VALUES ('delete', old.rowid, old.title, old.content, old.tags);
END;
CREATE TRIGGER knowledge_notes_fts_update AFTER UPDATE ON knowledge_notes BEGIN
    INSERT INTO knowledge_notes_fts(knowledge_notes_fts, rowid, title, content, tags)
    VALUES ('delete', old.rowid, old.title, old.content, old.tags);
    INSERT INTO knowledge_notes_fts(rowid, title, content, tags)
    VALUES (new.rowid, new.title, new.content, new.tags);
END;
"""
