"""Verbs that watch services and the machine: health, top and doctor.

    probe               asks a server once for its health
    health              `zipmoe health`: health of the services
    metrics_endpoints   addresses of the services' metrics
    scrape              reads the Prometheus metrics of a service
    readings            rates and gauges from two snapshots of the metrics
    top_view, top       `zipmoe top`: draws the readings at intervals
    doctor              `zipmoe doctor`: prints the findings of `zipmoe.doctor`

`zipmoe.cli.__main__` registers the verbs. `zipmoe.cli.serving.service_group` calls `probe` and `metrics_endpoints`;
`zipmoe.cli.showing.demo` calls `scrape`.
"""
