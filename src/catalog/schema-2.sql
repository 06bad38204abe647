-- What store format 5 has more. Columns that were added count in their row's `sum` only where they are not NULL.

ALTER TABLE image ADD COLUMN rules TEXT;        -- JSON: what holds beyond the mode (immutable); NULL: nothing
ALTER TABLE alias ADD COLUMN description TEXT;

CREATE TABLE label (
    serial INTEGER PRIMARY KEY,
    image  INTEGER NOT NULL REFERENCES image (serial),
    name   TEXT NOT NULL,           -- without the @
    number INTEGER NOT NULL,        -- of the version; it may be in the trash
    sum    BLOB NOT NULL,
    UNIQUE (image, name)
) STRICT;

CREATE TABLE lease (
    serial  INTEGER PRIMARY KEY,
    version INTEGER NOT NULL REFERENCES version (serial),
    name    TEXT NOT NULL,
    facts   TEXT NOT NULL,          -- JSON: text or target, owner, mode, times
    sum     BLOB NOT NULL,
    UNIQUE (version, name)
) STRICT;
