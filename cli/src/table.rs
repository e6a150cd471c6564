//! Terminal tables of results, all of one kind.

use comfy_table::{LineStyle, Row, Table, TableStyle};

/// A rule under the header, and none between rows.
const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// A table with this header and no rows.
pub(crate) fn with_header<T: Into<Row>>(header: T) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header);
    table
}
