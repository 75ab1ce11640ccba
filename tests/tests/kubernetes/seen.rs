//! An application that answers with what it was told, and a pod to ask from.

/// What the application says it was told under a name of CGI (RFC 3875 §4.1); empty if nothing.
pub fn told<'b>(body: &'b str, name: &str) -> &'b str {
    let mut lines = body.lines().filter_map(|line| line.split_once('='));
    lines.find(|(named, _)| *named == name).map_or("", |(_, value)| value)
}

/// `api`, which tells at `/cgi-bin/seen`, and the pod `client`.
pub const APPLICATIONS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: answers }
data:
  seen: |
    #!/bin/sh
    printf 'Content-Type: text/plain\r\nX-Answer-Set: theirs\r\nX-Answer-Added: theirs\r\nX-Answer-Gone: theirs\r\n\r\n'
    env
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: api }
spec:
  selector: { matchLabels: { app: api } }
  template:
    metadata: { labels: { app: api } }
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: api
          image: local.test/busybox:1
          imagePullPolicy: Never
          command: [sh, -c, "mkdir /tmp/www && echo good > /tmp/www/index.html && ln -s /answers /tmp/www/cgi-bin && exec httpd -f -p 8080 -h /tmp/www"]
          ports: [{ containerPort: 8080, name: web }]
          readinessProbe: { httpGet: { path: /, port: 8080 }, periodSeconds: 1 }
          volumeMounts: [{ name: answers, mountPath: /answers }]
      volumes: [{ name: answers, configMap: { name: answers, defaultMode: 0555 } }]
---
apiVersion: v1
kind: Service
metadata: { name: api }
spec:
  selector: { app: api }
  ports:
    - { name: http, port: 80, targetPort: 8080 }
    - { name: sql, port: 5432, targetPort: 8080, appProtocol: postgresql }
---
apiVersion: v1
kind: Pod
metadata: { name: client }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: client, image: "local.test/busybox:1", imagePullPolicy: Never, command: [sleep, "3600"] }]
"#;
