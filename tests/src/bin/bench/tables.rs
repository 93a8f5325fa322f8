//! Tables that read well in a terminal and in Markdown.

use comfy_table::{CellAlignment, Table, presets};

/// A table with this header; all columns but the first are numbers.
pub(crate) fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header.into_iter().map(Into::into).collect::<Vec<String>>());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
