//! `Op::Push`: the image of this run under its tags.

use crate::perform::{Performer, progress, telling};
use keelway_engine::{Ctx, Failure, Performed};
use keelway_model::plan::{PushOp, TagRule};
use keelway_model::{Node, Output, Tag};

/// The tags that the rules give for a commit and a branch; equal ones once.
fn tags(op: &PushOp, commit: Option<&str>, branch: Option<&str>) -> Result<Vec<Tag>, Failure> {
    let mut tags: Vec<Tag> = Vec::new();
    for rule in &op.tags {
        let tag = match rule {
            TagRule::Commit => match commit {
                Some(c) => Some(c.parse().map_err(|e| Failure::bug(format!("the commit is no tag: {e}")))?),
                None => {
                    return Err(Failure::failed("the tag `commit` needs a commit, and this run has none"));
                }
            },
            TagRule::Branch => branch.and_then(Tag::of_branch),
            TagRule::Literal(tag) => Some(tag.clone()),
        };
        tags.extend(tag.filter(|t| !tags.contains(t)));
    }
    Ok(tags)
}

pub(crate) async fn run(
    performer: &Performer,
    ctx: &Ctx,
    node: &Node,
    op: &PushOp,
    inputs: &[Output],
) -> Result<Performed, Failure> {
    let place = node.needs.iter().position(|n| *n == op.image);
    let Some(Output::Image(image)) = place.and_then(|i| inputs.get(i)) else {
        return Err(Failure::bug(format!("{}: the image to push is not among its inputs", node.name)));
    };
    let subject = &performer.subject;
    let tags = tags(op, subject.commit.as_ref().map(|c| c.as_str()), subject.branch.as_deref())?;
    let pushed = telling(&performer.registry, ctx)
        .push(performer.store(), &image.manifest, &op.to, &tags, progress(ctx))
        .await
        .map_err(|e| Failure::outside(e.to_string()))?;
    for tag in &tags {
        ctx.news(format!("{}:{tag}@{}", op.to, pushed.digest())).await;
    }
    let result = pushed.to_string();
    Ok(Performed::Output(Output::Pushed(pushed), Some(result)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelway_model::NodeId;

    #[test]
    fn tags_follow_the_rules() {
        let op = PushOp {
            image: NodeId(0),
            to: "r.example.com/a".parse().unwrap(),
            tags: vec![TagRule::Commit, TagRule::Branch, TagRule::Literal("main".parse().unwrap())],
        };
        let commit = "0123456789012345678901234567890123456789";
        let text = |t: Vec<Tag>| t.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(tags(&op, Some(commit), Some("main")).unwrap()), [commit, "main"]);
        assert_eq!(text(tags(&op, Some(commit), Some("fix/a")).unwrap()), [commit, "fix-a", "main"]);
        assert_eq!(text(tags(&op, Some(commit), None).unwrap()), [commit, "main"]);
        assert!(tags(&op, None, Some("main")).is_err());
    }
}
