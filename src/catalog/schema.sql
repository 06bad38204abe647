-- The catalog: what exists under which name. A row or two a version; everything large is in trees and blobs.
-- Times are nanoseconds since 1970, UTC. `sum` is BLAKE3 over the other columns (16 bytes): SQLite does not
-- notice a flipped bit in a value.

CREATE TABLE setting (
    key   TEXT PRIMARY KEY,     -- 'next_serial', 'commit', 'total', 'blobs', 'default_image', 'default_hidden', 'root';
                                -- with a dot, what users chose: 'config.trash', 'default.vm'
    value TEXT NOT NULL,
    sum   BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE image (
    serial         INTEGER PRIMARY KEY, -- never given out twice; images, versions and aliases share the numbers
    id             TEXT NOT NULL,       -- what users see: 20 characters
    name           TEXT NOT NULL,       -- in the trash: the name it had
    uid            INTEGER NOT NULL,
    gid            INTEGER NOT NULL,
    mode           INTEGER NOT NULL,    -- permission bits
    next_number    INTEGER NOT NULL,    -- of the next version; only grows
    pinned         INTEGER,             -- the version its `default` names; NULL: latest
    default_hidden INTEGER NOT NULL,    -- 1 after `rm web/default`, until it is set again
    editable       TEXT NOT NULL,       -- JSON: the keys of metadata.json that users may change
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL,
    trashed_at     INTEGER,             -- NULL: live
    trash_name     TEXT,
    sum            BLOB NOT NULL
) STRICT;

CREATE TABLE version (
    serial     INTEGER PRIMARY KEY,
    image      INTEGER NOT NULL REFERENCES image (serial),
    number     INTEGER NOT NULL,
    id         TEXT NOT NULL,
    tree       BLOB NOT NULL,       -- BLAKE3 of trees/ID.tree
    facts      TEXT NOT NULL,       -- JSON: sizes, digests, origin, counts; never changes
    receipt    TEXT,                -- JSON: how the upload's own name still shows; NULL once it was removed
    created_at INTEGER NOT NULL,
    trashed_at INTEGER,
    trash_name TEXT,
    sum        BLOB NOT NULL,
    UNIQUE (image, number)
) STRICT;

CREATE TABLE alias (
    serial INTEGER PRIMARY KEY,
    name   TEXT NOT NULL,           -- unique among live names; the alias of a trashed image keeps its row
    image  INTEGER NOT NULL REFERENCES image (serial),
    number INTEGER,                 -- of a version: `ln -s web/1 jammy-old`; NULL: the image
    sum    BLOB NOT NULL
) STRICT;
