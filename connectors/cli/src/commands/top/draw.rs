//! `top` on a terminal: one table of pipelines, one of their partitions.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Cell, Row, Table};

use super::view::{Pipeline, maybe, short, span};
use crate::term::columns;

/// Draws everything into the frame. Colours only where `coloured`.
pub(super) fn draw(frame: &mut Frame<'_>, pipelines: &[Pipeline], coloured: bool) {
    let height = u16::try_from(pipelines.len()).unwrap_or(u16::MAX).saturating_add(3);
    let [top, rest, foot] = Layout::vertical([
        Constraint::Length(height.min(frame.area().height / 2)),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(pipeline_table(pipelines, coloured), top);
    frame.render_widget(partition_table(pipelines), rest);
    let there = pipelines.iter().filter(|pipeline| pipeline.failure.is_none()).count();
    let text = format!("{there} of {} admin ports answer   q quits", pipelines.len());
    frame.render_widget(Line::from(text), foot);
}

const HEAD: [&str; 13] = [
    "pipeline",
    "phase",
    "records/s",
    "in B/s",
    "out B/s",
    "values/s",
    "lag",
    "key age",
    "cache",
    "kms ms",
    "dead",
    "errors",
    "policy",
];

fn pipeline_table(pipelines: &[Pipeline], coloured: bool) -> Table<'static> {
    let rows = pipelines.iter().map(|pipeline| {
        let [name, phase, rest @ ..] = cells(pipeline);
        let colour = match pipeline.phase.as_str() {
            "ready" => Color::Green,
            "starting" | "draining" => Color::Yellow,
            _ => Color::Red,
        };
        let style = if coloured {
            Style::new().fg(colour)
        } else {
            Style::new()
        };
        let first = [Cell::from(name), Cell::from(phase).style(style)];
        Row::new(first.into_iter().chain(rest.into_iter().map(Cell::from)))
    });
    let widths = [24, 12, 9, 9, 9, 9, 9, 8, 6, 7, 7, 7, 6].map(Constraint::Max);
    Table::new(rows, widths)
        .header(Row::new(HEAD).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::new().borders(Borders::TOP).title(" sealflow top "))
}

/// The columns of [`HEAD`].
pub(super) fn cells(pipeline: &Pipeline) -> [String; 13] {
    let totals = &pipeline.totals;
    let name = if totals.pipeline.is_empty() {
        &pipeline.admin
    } else {
        &totals.pipeline
    };
    let or_dash = |there: bool, text: String| if there { text } else { "-".to_owned() };
    let known = totals.records_read > 0.0 || !totals.phase.is_empty();
    [
        name.clone(),
        pipeline.phase.clone(),
        maybe(pipeline.records_per_second),
        maybe(pipeline.bytes_read_per_second),
        maybe(pipeline.bytes_committed_per_second),
        maybe(pipeline.values_per_second),
        or_dash(known, short(pipeline.lag)),
        or_dash(totals.key_age_seconds > 0.0, span(totals.key_age_seconds)),
        pipeline
            .cache_hit_ratio
            .map_or("-".to_owned(), |ratio| format!("{:.0}%", ratio * 100.0)),
        pipeline
            .kms_mean_seconds
            .map_or("-".to_owned(), |mean| format!("{:.1}", mean * 1000.0)),
        or_dash(known, short(totals.dead_letters)),
        or_dash(known, short(totals.errors)),
        totals
            .policy_version
            .map_or("-".to_owned(), |version| format!("{version:.0}")),
    ]
}

fn partition_table(pipelines: &[Pipeline]) -> Table<'static> {
    let rows = pipelines.iter().flat_map(|pipeline| {
        pipeline.partitions.iter().map(|partition| {
            Row::new([
                pipeline.totals.pipeline.clone(),
                format!("{}/{}", partition.topic, partition.partition),
                short(partition.lag),
                maybe(partition.offsets_per_second),
                partition
                    .position
                    .map_or("-".to_owned(), |position| format!("{position:.0}")),
            ])
        })
    });
    let widths = [
        Constraint::Max(24),
        Constraint::Max(40),
        Constraint::Max(10),
        Constraint::Max(10),
        Constraint::Max(20),
    ];
    Table::new(rows, widths)
        .header(
            Row::new(["pipeline", "partition", "lag", "offsets/s", "next offset"])
                .style(Style::new().add_modifier(Modifier::BOLD)),
        )
        .block(
            Block::new()
                .borders(Borders::TOP)
                .title(" partitions, the furthest behind first "),
        )
}

/// The same as plain lines.
pub(super) fn lines(pipelines: &[Pipeline]) -> Vec<String> {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(pipelines.iter().map(cells));
    let mut lines = columns(&rows);
    for pipeline in pipelines {
        for partition in &pipeline.partitions {
            lines.push(format!(
                "{} {}/{}: lag {}, {} offsets/s",
                pipeline.totals.pipeline,
                partition.topic,
                partition.partition,
                short(partition.lag),
                maybe(partition.offsets_per_second)
            ));
        }
        if let Some(failure) = &pipeline.failure {
            lines.push(format!("{}: {failure}", pipeline.admin));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::view::tests::seen;
    use super::super::view::view;
    use super::*;

    fn drawn(width: u16, height: u16, pipelines: &[Pipeline]) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, pipelines, true)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn all_pipelines_and_partitions_are_on_the_screen() {
        insta::assert_snapshot!("top", drawn(130, 20, &view(&seen())));
    }

    #[test]
    fn a_tiny_terminal_is_no_reason_to_fail() {
        for (width, height) in [(1, 1), (10, 3), (40, 6)] {
            drawn(width, height, &view(&seen()));
        }
        drawn(80, 24, &[]);
    }

    #[test]
    fn pipes_get_the_same_as_plain_lines() {
        insta::assert_snapshot!("top_once", lines(&view(&seen())).join("\n"));
    }
}
