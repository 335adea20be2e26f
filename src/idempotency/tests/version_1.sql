CREATE TABLE records (
    row INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    holder INTEGER NOT NULL,
    number INTEGER NOT NULL,
    lease INTEGER NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    namespace TEXT NOT NULL,
    method TEXT NOT NULL,
    authority TEXT NOT NULL,
    path TEXT NOT NULL,
    key TEXT NOT NULL,
    status INTEGER,
    fields BLOB,
    body BLOB,
    trailers BLOB
);
CREATE INDEX records_by_expiry ON records (expires);
CREATE INDEX records_by_holder ON records (holder) WHERE state = 0;
CREATE TABLE holders (holder INTEGER PRIMARY KEY, beat INTEGER NOT NULL);
CREATE TABLE extent (records INTEGER NOT NULL);
INSERT INTO extent VALUES (0);
PRAGMA journal_mode = WAL;
PRAGMA application_id = 1381460324;
PRAGMA user_version = 1;
