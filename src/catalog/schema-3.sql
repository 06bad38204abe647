-- What store format 7 has more. As before, added columns count in `sum` only up to the last that is not NULL.

ALTER TABLE alias ADD COLUMN follows TEXT;      -- JSON: latest, default or a label that it follows; NULL: the image, or `number`
ALTER TABLE alias ADD COLUMN trash TEXT;        -- JSON: since when it is in the trash, and its name there; NULL: live
ALTER TABLE label ADD COLUMN trash TEXT;        -- the same
