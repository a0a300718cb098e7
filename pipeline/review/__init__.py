"""Review by people: select rows, export them to a spreadsheet, import the answers, measure precision."""
