//! The form of JSON documents in files.

use serde_json::Value;

/// A document as it is written to a file: pretty, with a newline at the end.
pub fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
