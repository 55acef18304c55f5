//! Metrics in the Prometheus text format (OpenMetrics). Parts of the node describe themselves as samples at each scrape,
//! so that counting on hot paths is an atomic add and nothing else.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

/// One metric at the time of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Without the prefix `pontoon_` and without the suffix `_total`.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives.
    Counter,
    Gauge,
}

/// Names and values of labels.
pub type Labels = Vec<(&'static str, String)>;

/// One value with its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub labels: Labels,
    pub value: f64,
}

impl Metric {
    pub fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self {
            name,
            help,
            kind: Kind::Counter,
            samples: vec![Sample::plain(value as f64)],
        }
    }

    pub fn gauge(name: &'static str, help: &'static str, value: f64) -> Self {
        Self {
            name,
            help,
            kind: Kind::Gauge,
            samples: vec![Sample::plain(value)],
        }
    }

    /// A metric with one sample for each set of labels.
    pub fn labelled(
        name: &'static str,
        help: &'static str,
        kind: Kind,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) -> Self {
        let samples = samples.into_iter();
        Self {
            name,
            help,
            kind,
            samples: samples
                .map(|(labels, value)| Sample { labels, value })
                .collect(),
        }
    }
}

impl Sample {
    fn plain(value: f64) -> Self {
        Self {
            labels: Vec::new(),
            value,
        }
    }
}

/// Where metrics come from: called at each scrape, must not block.
pub type Source = Arc<dyn Fn() -> Vec<Metric> + Send + Sync>;

/// All sources of this process.
#[derive(Clone)]
pub struct Metrics(Arc<Registry>);

struct SourceCollector(Source);

impl Metrics {
    pub fn new(sources: Vec<Source>) -> Self {
        let mut registry = Registry::with_prefix("pontoon");
        for source in sources {
            registry.register_collector(Box::new(SourceCollector(source)));
        }
        Self(Arc::new(registry))
    }

    /// The text of a scrape.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut out = String::with_capacity(16 << 10);
        text::encode(&mut out, &self.0)?;
        Ok(out)
    }
}

impl fmt::Debug for SourceCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SourceCollector")
    }
}

impl Collector for SourceCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for metric in (self.0)() {
            match metric.kind {
                Kind::Counter => encode(&mut encoder, &metric, ConstCounter::new)?,
                Kind::Gauge => encode(&mut encoder, &metric, ConstGauge::new)?,
            }
        }
        Ok(())
    }
}

fn encode<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    metric: &Metric,
    make: impl Fn(f64) -> M,
) -> fmt::Result {
    let kind = make(0.0).metric_type();
    let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
    if let [Sample { labels, value }] = metric.samples.as_slice()
        && labels.is_empty()
    {
        return make(*value).encode(family);
    }
    for sample in &metric.samples {
        make(sample.value).encode(family.encode_family(&sample.labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_written_with_their_labels() {
        let source: Source = Arc::new(|| {
            let udp = Sample {
                labels: vec![("transport", "udp".into())],
                value: 7.0,
            };
            vec![
                Metric {
                    name: "queries",
                    help: "Queries",
                    kind: Kind::Counter,
                    samples: vec![udp],
                },
                Metric::gauge("revision", "Revision", 42.0),
            ]
        });
        let text = Metrics::new(vec![source]).render().expect("rendered");
        assert!(text.contains("# TYPE pontoon_queries counter"), "{text}");
        assert!(
            text.contains("pontoon_queries_total{transport=\"udp\"} 7.0"),
            "{text}"
        );
        assert!(text.contains("pontoon_revision 42.0"), "{text}");
    }
}
